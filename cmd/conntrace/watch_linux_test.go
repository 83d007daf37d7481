package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/conntrace/conntrace/internal/testenv"
)

func TestWatchSeed(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	w := watch(t, "--format", "json", "--pid", self)
	ev := w.next(t, inetAddr(l.Addr()))
	if ev.Event != "seed" || ev.Proto != "tcp" || *ev.Status != "LISTEN" || ev.Direction != nil || *ev.PID != os.Getpid() {
		t.Errorf("seed: %+v", ev)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000000000Z", ev.Time); err != nil {
		t.Error(err)
	}
	w.Process.Signal(syscall.SIGINT)
	w.end(t)
}

// TestWatchIsDefault checks that watch needs no name, and its text.
func TestWatchIsDefault(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	out := mustRun(t, "--pid", self, "--event", "seed", "--port", inetPort(l), "--count", "1")
	lines := strings.Split(out, "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "TIME ") || !strings.Contains(lines[1], " seed ") ||
		!strings.Contains(lines[1], l.Addr().String()) || !strings.HasSuffix(lines[1], "LISTEN") {
		t.Errorf("output:\n%s", out)
	}
}

func TestWatchSignals(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		for _, format := range []string{"text", "json"} {
			w := watch(t, "--format", format, "-H", "--port", inetPort(l))
			w.line(t) // it has begun
			w.Process.Signal(sig)
			w.end(t)
		}
	}
}

func TestWatchDuration(t *testing.T) {
	start := time.Now()
	w := watch(t, "--no-seed", "--duration", "300ms")
	w.end(t)
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("ended after %v", took)
	}
}

func TestWatchQuiet(t *testing.T) {
	if r := conntrace(t, "watch", "-q", "--duration", "100ms", "--backend", "procfs"); r.status != exitOK || r.stderr != "" {
		t.Errorf("watch -q: exit status %d, stderr %q", r.status, r.stderr)
	}
}

// TestWatchClosedPipe checks that watch ends with its reader, even if it has
// nothing more to write.
func TestWatchClosedPipe(t *testing.T) {
	w := watch(t, "--no-seed", "--port", "1")
	w.line(t) // the header
	w.pipe.Close()
	if err := w.Wait(); err != nil {
		t.Error(err)
	}
	if strings.Contains(w.stderr.String(), " in ") {
		t.Errorf("it was not quiet: %q", &w.stderr)
	}
}

// TestWatchConnection follows a connection from its listener to its end.
func TestWatchConnection(t *testing.T) {
	testenv.Root(t)
	w := watch(t, "--format", "json", "--backend", "ebpf", "--pid", self)
	anchor := listen(t, "tcp", "127.0.0.1:0")
	w.next(t, inetAddr(anchor.Addr())) // it has begun

	l := listen(t, "tcp", "127.0.0.1:0")
	if ev := w.next(t, inetAddr(l.Addr())); ev.Event != "listen" || *ev.PID != os.Getpid() {
		t.Errorf("listen: %+v", ev)
	}
	start := time.Now()
	client, server := connect(t, l)
	if ev := w.next(t, inetAddr(client.LocalAddr())); ev.Event != "connect" || *ev.Direction != "outbound" || *ev.PID != os.Getpid() {
		t.Errorf("connect: %+v", ev)
	}
	if late := time.Since(start); late > 500*time.Millisecond {
		t.Errorf("the connection was shown after %v", late)
	}
	if ev := w.next(t, inetAddr(l.Addr())); ev.Event != "accept" || *ev.Direction != "inbound" || string(ev.Raddr) != inetAddr(client.LocalAddr()) {
		t.Errorf("accept: %+v", ev)
	}
	client.Write([]byte("hello"))
	server.Read(make([]byte, 5))
	client.Close()
	server.Close()
	ev := w.next(t, inetAddr(client.LocalAddr()))
	if ev.Event != "close" || ev.BytesSent == nil || *ev.BytesSent != 5 || ev.Duration == nil || *ev.Duration <= 0 || ev.Reason == nil || *ev.Reason != "fin" {
		t.Errorf("close: %+v", ev)
	}
	w.Process.Signal(syscall.SIGTERM)
	w.end(t)
}

func TestWatchFail(t *testing.T) {
	testenv.Root(t)
	l := listen(t, "tcp", "127.0.0.1:0")
	w := watch(t, "--format", "json", "--backend", "ebpf", "--port", inetPort(l), "--event", "seed,fail", "--count", "2")
	w.next(t, inetAddr(l.Addr())) // it has begun
	l.Close()
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Fatal("connected to a closed listener")
	}
	var ev event
	line := w.line(t)
	if err := json.Unmarshal([]byte(line), &ev); err != nil {
		t.Fatal(err)
	}
	if ev.Event != "fail" || ev.Error == nil || *ev.Error != "ECONNREFUSED" || *ev.PID != os.Getpid() {
		t.Errorf("fail: %s", line)
	}
	w.end(t) // by its count
}

func TestWatchStates(t *testing.T) {
	testenv.Root(t)
	for _, flag := range []string{"--states", "--event=seed,state"} {
		l := listen(t, "tcp", "127.0.0.1:0")
		w := watch(t, "--format", "json", "--pid", self, flag)
		w.next(t, inetAddr(l.Addr())) // it has begun
		client, server := connect(t, l)
		client.Close()
		server.Close()
		var changes []string
		for !slices.Contains(changes, "FIN_WAIT2 CLOSE") {
			if ev := w.next(t, inetAddr(client.LocalAddr())); ev.Event == "state" {
				changes = append(changes, *ev.OldStatus+" "+*ev.Status)
			} else if flag != "--states" {
				t.Errorf("%s: %+v", flag, ev)
			}
		}
		if want := []string{"SYN_SENT ESTABLISHED", "ESTABLISHED FIN_WAIT1", "FIN_WAIT1 FIN_WAIT2", "FIN_WAIT2 CLOSE"}; !slices.Equal(changes, want) {
			t.Errorf("%s: %q, want %q", flag, changes, want)
		}
		w.Process.Signal(syscall.SIGTERM)
		w.end(t)
	}
	r := conntrace(t, "watch", "--states", "--backend", "procfs")
	if r.status != exitFailed || !strings.Contains(r.stderr, "changes of state cannot be polled") {
		t.Errorf("watch --states --backend procfs: exit status %d, stderr %q", r.status, r.stderr)
	}
}

// TestWatchSlowOutput checks that a reader that falls behind is told what it has
// missed, where, and what to do about it.
func TestWatchSlowOutput(t *testing.T) {
	testenv.Root(t)
	t.Parallel()
	stop := churn(t)
	cmd := command(t, "watch", "-o", "json", "--no-seed", "--buffer", "100")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	stderr := bufio.NewReader(pipe)
	for { // until the pipe and the buffers are full
		line, err := stderr.ReadString('\n')
		if err != nil {
			t.Fatalf("no note: %v", err)
		}
		if strings.Contains(line, "the output is too slow, and events are lost") && strings.Contains(line, "--buffer") {
			break
		}
	}
	stop()
	cmd.Process.Signal(syscall.SIGINT)

	var told uint64
	out := bufio.NewScanner(stdout)
	for out.Scan() {
		var ev struct {
			Event string
			Lost  uint64
		}
		if err := json.Unmarshal(out.Bytes(), &ev); err != nil {
			t.Fatal(err)
		}
		if ev.Event == "gap" {
			told += ev.Lost
		}
	}
	rest, err := io.ReadAll(stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if lost := lostBy(t, string(rest)); told != lost || told == 0 {
		t.Errorf("the gaps tell of %d events, the summary of %d: %q", told, lost, rest)
	}
}

// TestWatchRefused checks that an ordinary user is told why short connections may
// be missed, and that the source he insists on is refused.
func TestWatchRefused(t *testing.T) {
	cmd := command(t, "watch", "--duration", "50ms")
	asNobody(cmd)
	if r := finish(t, cmd); r.status != exitOK || !strings.Contains(r.stderr, "may be missed: ebpf refused: ") {
		t.Errorf("watch: exit status %d, stderr %q", r.status, r.stderr)
	}
	cmd = command(t, "watch", "--backend", "ebpf")
	asNobody(cmd)
	if r := finish(t, cmd); r.status != exitPermission || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("watch --backend ebpf: exit status %d, stderr %q", r.status, r.stderr)
	}
}

// TestWatchPolled checks that a stream that polls says so, and in the end how much
// it may have missed.
func TestWatchPolled(t *testing.T) {
	for _, backend := range []string{"netlink", "procfs"} {
		r := finish(t, command(t, "watch", "--backend", backend, "--poll-interval", "20ms", "--duration", "300ms"))
		summary := regexp.MustCompile(`(?m)^conntrace: \d+ events? in .*; none lost; (no connection|at most \d+ short connections?) missed`)
		if r.status != exitOK || !summary.MatchString(r.stderr) {
			t.Errorf("%s: exit status %d, stderr %q", backend, r.status, r.stderr)
		}
	}
}
