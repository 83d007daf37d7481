package tracker_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestPolling follows a connection by each source that polls; no privilege is
// needed for one's own.
func TestPolling(t *testing.T) {
	for _, source := range []tracker.Source{tracker.SourceNetlink, tracker.SourceProcfs} {
		t.Run(string(source), func(t *testing.T) {
			tr, err := tracker.Open(t.Context(), tracker.Config{Source: source, PollInterval: 10 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			if info := tr.Info(); info.Source != source || len(info.Limits) == 0 || len(info.Hooks) != 0 {
				t.Errorf("info: %+v", info)
			}
			want := tracker.Polling{Shortest: 10 * time.Millisecond, Longest: 100 * time.Millisecond, Closes: source == tracker.SourceNetlink}
			if p := tr.Info().Polling; p == nil || *p != want {
				t.Errorf("polling: %+v, want %+v", p, want)
			}
			existing := connect(t, "tcp4", "127.0.0.1:0")
			eventually(t, "a poll that has seen it", func() bool {
				s, err := tr.Subscribe(tracker.Filter{Ports: []uint16{port(existing.client.LocalAddr())}})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				return len((&stream{t, s}).rest(tr)) == 2 // its two ends
			})

			s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{int32(os.Getpid())}})
			l, err := listen("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			mine := func(e *conn.Event) bool { // sockets of earlier tests may just have been closed
				return e.Laddr.Port() == port(l.Addr()) || e.Raddr.Port() == port(l.Addr())
			}
			if e := s.next("listen event", mine); e.Type != conn.EventListen || e.Laddr != addr(l.Addr()) || e.FD != fdOf(t, l.(*net.TCPListener)) {
				t.Errorf("%s, want a listener on %s", describe(&e), l.Addr())
			}
			p := dial(t, l, "tcp4", l.Addr().String())
			local, remote := addr(p.client.LocalAddr()), addr(p.client.RemoteAddr())
			opened := map[conn.EventType]conn.Conn{
				conn.EventConnect: {Laddr: local, Raddr: remote, FD: fdOf(t, p.client)},
				conn.EventAccept:  {Laddr: remote, Raddr: local, FD: fdOf(t, p.server)},
			}
			for len(opened) > 0 {
				e := s.next("event", mine)
				w, ok := opened[e.Type]
				if !ok || e.Laddr != w.Laddr || e.Raddr != w.Raddr || e.FD != w.FD || e.Process == nil {
					t.Fatalf("%s, want one of %+v", describe(&e), opened)
				}
				delete(opened, e.Type)
			}
			p.client.Close()
			p.server.Close()
			for range 2 {
				if e := s.next("close event", mine); e.Type != conn.EventClose || e.Laddr != local && e.Laddr != remote {
					t.Errorf("close of another socket: %s", describe(&e))
				}
			}
			st := tr.Stats()
			if st.Seen == 0 || st.Seen != st.Delivered+st.Lost.Events() || st.Polls == 0 || st.Missed < 0 || st.LongestUnseen < st.PollInterval {
				t.Errorf("account: %+v", st)
			}
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
			if _, err := tr.Subscribe(tracker.Filter{}); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Subscribe after Close: %v", err)
			}
			if _, err := tr.Connections(conn.KindTCP); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Connections after Close: %v", err)
			}
		})
	}
}

// TestPollingCloses: with sock_diag a close need not wait for the next look, and
// says what the connection has carried.
func TestPollingCloses(t *testing.T) {
	p := connect(t, "tcp4", "127.0.0.1:0")
	tr, err := tracker.Open(t.Context(), tracker.Config{Source: tracker.SourceNetlink, PollInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: []uint16{port(p.client.LocalAddr())}})
	if _, err := p.client.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	read(t, p.server, 100)
	p.client.Close()
	read(t, p.server, 0)
	p.server.Close()
	for range 2 {
		e := s.event(conn.EventClose)
		if e.PID != int32(os.Getpid()) || e.Close == nil || e.Close.BytesSent+e.Close.BytesReceived != 100 || e.Close.Reason != conn.ReasonFin {
			t.Errorf("%s: %+v", describe(&e), e.Close)
		}
	}
	if st := tr.Stats(); st.Polls != 1 || st.Seen < 2 || st.Seen != st.Delivered+st.Lost.Events() {
		t.Errorf("account: %+v", st)
	}
}

// TestUnprivileged: without privileges the best source is one that polls, and why
// BPF was refused is said.
func TestUnprivileged(t *testing.T) {
	const env = "CONNTRACE_TEST_UNPRIVILEGED"
	if os.Getenv(env) == "" && os.Geteuid() == 0 {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestUnprivileged$", "-test.v")
		cmd.Env = append(os.Environ(), env+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestUnprivileged") {
			t.Errorf("as nobody: %v\n%s", err, out)
		}
		return
	}
	tr, err := tracker.Open(t.Context(), tracker.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	info := tr.Info()
	if info.Source != tracker.SourceNetlink || len(info.Refused) != 1 {
		t.Fatalf("info: %+v", info)
	}
	r := info.Refused[0]
	if r.What != "ebpf" || !errors.Is(r.Err, os.ErrPermission) || !strings.Contains(r.Remedy, "run as root, or with CAP_BPF") {
		t.Errorf("refused: %s: %v; %s", r.What, r.Err, r.Remedy)
	}
	if _, err := tracker.Open(t.Context(), tracker.Config{Source: tracker.SourceEBPF}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("forced: %v", err)
	}
}

// TestBadConfig: what cannot be is refused with what could.
func TestBadConfig(t *testing.T) {
	for want, cfg := range map[string]tracker.Config{
		`unknown source "x"; valid ones are [ebpf netlink procfs native]`: {Source: "x"},
		"source native cannot do this on this system":                     {Source: tracker.SourceNative},
		"ring buffer of -1 bytes":                                         {RingBuffer: -1},
		"at most -1 connections":                                          {MaxConnections: -1},
		"poll interval of -1ns":                                           {PollInterval: -1},
	} {
		tr, err := tracker.Open(t.Context(), cfg)
		if err == nil {
			tr.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
	if _, err := tracker.NetConnections(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "valid kinds") {
		t.Errorf("kind 0: %v", err)
	}
	for _, pid := range []int32{0, -1, 1 << 30} {
		if _, err := tracker.NetConnectionsPID(t.Context(), conn.KindInet, pid); !errors.Is(err, conn.ErrNoSuchProcess) {
			t.Errorf("pid %d: %v", pid, err)
		}
	}
}

// TestWithoutTracefs: the accept hook needs a number that only tracefs
// knows; that is had even where it is not mounted.
func TestWithoutTracefs(t *testing.T) {
	testenv.Root(t)
	if _, err := os.Stat("/sys/kernel/tracing/events"); err == nil {
		t.Skip("tracefs is mounted here")
	}
	tr := open(t, tracker.Config{})
	for _, h := range tr.Info().Hooks {
		if strings.HasPrefix(h.Attach, "tracepoint/") || strings.HasPrefix(h.Attach, "fexit/") {
			return
		}
	}
	t.Errorf("no hook sees accepts: %+v", tr.Info().Hooks)
}
