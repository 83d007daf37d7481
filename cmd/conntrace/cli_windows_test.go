package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/conntrace/conntrace/pkg/conn"
)

func TestListWindows(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l := listen(t, "tcp", address)
		client, server := connect(t, l)
		for _, args := range [][]string{{"--pid", self, "--kind", "tcp"}, {"--kind", "all", "--backend", "native"}} {
			rs := rows(t, args...)
			for _, tt := range []struct{ laddr, raddr, status string }{
				{inetAddr(l.Addr()), "null", "LISTEN"},
				{inetAddr(client.LocalAddr()), inetAddr(l.Addr()), "ESTABLISHED"},
				{inetAddr(server.LocalAddr()), inetAddr(client.LocalAddr()), "ESTABLISHED"},
			} {
				r := find(rs, tt.laddr, tt.raddr)
				if r == nil {
					t.Errorf("%q: no row from %s to %s", args, tt.laddr, tt.raddr)
					continue
				}
				if r.Status != tt.status || r.Type != int(conn.Stream) || r.FD != -1 || r.PID == nil || *r.PID != int32(os.Getpid()) ||
					r.Comm == nil || *r.Comm != filepath.Base(exe) || r.Inode != nil || r.Holders != nil {
					t.Errorf("%q: from %s to %s: %+v", args, tt.laddr, tt.raddr, r)
				}
			}
		}
		if out := mustRun(t, "list", "-tl", "--port", inetPort(l)); !strings.Contains(out, l.Addr().String()) || strings.Count(out, "\n") != 2 {
			t.Errorf("table:\n%s", out)
		}
	}
}

func TestListErrorsWindows(t *testing.T) {
	for _, tt := range []struct {
		args   string
		status int
		want   string
	}{
		{"list --pid 2147483647", exitNoProcess, "process 2147483647: no such process"},
		{"list --kind unix", exitFailed, "windows has no table of unix sockets"},
		{"list --backend netlink", exitFailed, "source netlink cannot do this on this system"},
		{"watch --backend ebpf", exitFailed, "source ebpf cannot do this on this system"},
	} {
		r := conntrace(t, strings.Fields(tt.args)...)
		if r.status != tt.status || r.stdout != "" || !strings.Contains(r.stderr, tt.want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: exit status %d, stdout %q, stderr %q", tt.args, r.status, r.stdout, r.stderr)
		}
	}
}

// TestWatchWindows watches connections come and go, for a limited time.
func TestWatchWindows(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	w := watch(t, "-o", "json", "--port", inetPort(l), "--poll-interval", "50ms", "--duration", "5s")
	if ev := w.next(t, inetAddr(l.Addr())); ev.Event != "seed" || *ev.Status != "LISTEN" || *ev.PID != os.Getpid() {
		t.Errorf("the listener: %+v", ev)
	}
	client, server := connect(t, l)
	expect := func(laddr net.Addr, event, direction string) {
		t.Helper()
		if ev := w.next(t, inetAddr(laddr)); ev.Event != event || ev.Direction == nil || *ev.Direction != direction || *ev.PID != os.Getpid() {
			t.Errorf("%s: got %+v, want %s %s", laddr, ev, event, direction)
		}
	}
	expect(client.LocalAddr(), "connect", "outbound")
	client.Close()
	server.Close()
	expect(client.LocalAddr(), "close", "outbound")
	w.end(t)
}

// consoleEnv tells the test binary that it was given a console.
const consoleEnv = "CONNTRACE_TEST_CONSOLE"

// TestWatchCtrlC: the key for it ends watch in order. Keys come from a console, which
// a test may not have, so that it starts itself again with one that nobody sees.
func TestWatchCtrlC(t *testing.T) {
	if os.Getenv(consoleEnv) == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestWatchCtrlC$", "-test.v")
		cmd.Env = append(os.Environ(), consoleEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NO_WINDOW}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestWatchCtrlC")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	w := watch(t, "-H", "--port", inetPort(l))
	w.line(t) // it has begun
	pressed := make(chan os.Signal, 1)
	signal.Notify(pressed, os.Interrupt) // everyone at the console gets it
	if err := windows.GenerateConsoleCtrlEvent(windows.CTRL_C_EVENT, 0); err != nil {
		t.Fatal(err)
	}
	<-pressed
	w.end(t)
}

// TestClosedPipeWindows: watch ends quietly at the first line that nobody reads.
func TestClosedPipeWindows(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	w := watch(t, "-H", "--port", inetPort(l), "--poll-interval", "50ms", "--duration", "30s")
	w.line(t)
	w.pipe.Close()
	connect(t, l)
	start := time.Now()
	if err := w.Wait(); err != nil || w.stderr.Len() > 0 || time.Since(start) > 20*time.Second {
		t.Errorf("after %v: %v, stderr %q", time.Since(start), err, &w.stderr)
	}
}

// TestDoctorWindows: nothing that is Linux's is asked for or recommended.
func TestDoctorWindows(t *testing.T) {
	out := mustRun(t, "doctor")
	if !strings.Contains(out, "Source in use: native\n") || !strings.Contains(out, "kernel            windows ") {
		t.Errorf("doctor:\n%s", out)
	}
	foreign := []string{"BTF", "CAP_", "root", "Refused", "to get it", "capabilities", "seccomp", "ebpf"}
	if i := slices.IndexFunc(foreign, func(s string) bool { return strings.Contains(out, s) }); i >= 0 {
		t.Errorf("doctor speaks of %s:\n%s", foreign[i], out)
	}
}

// TestListFile: a list that is written to a file is whole.
func TestListFile(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	file, err := os.Create(filepath.Join(t.TempDir(), "list"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := command(t, "list", "-o", "csv", "--port", inetPort(l))
	cmd.Stdout = file
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(file)
	if err != nil || bytes.Count(out, []byte("\n")) != 2 || !bytes.Contains(out, []byte("LISTEN")) {
		t.Errorf("%v: %q", err, out)
	}
}
