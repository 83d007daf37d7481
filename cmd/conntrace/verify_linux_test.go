package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/conntrace/conntrace/internal/testenv"
)

// A verdict is the last line of `conntrace verify -o json`.
type verdict struct {
	Event                     string
	Looks, Rows               uint64
	Mismatches, Transient     uint64
	Seen, Delivered, Lost     uint64
	LostRingFull              uint64 `json:"lost_ring_full"`
	LostRecursion             uint64 `json:"lost_recursion"`
	MapFull                   uint64 `json:"map_full"`
	Reconciled                uint64
	DurationNS                int64            `json:"duration_ns"`
	Difference, Table, Kernel *json.RawMessage // of a mismatch
}

// verdictOf decodes the output of verify, of which the last line is the verdict.
func verdictOf(t *testing.T, r result) verdict {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	var v verdict
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &v); err != nil {
		t.Fatalf("%v in %q; exit status %d, stderr %q", err, r.stdout, r.status, r.stderr)
	}
	if v.Event != "summary" {
		t.Fatalf("the last line is no summary: %q", r.stdout)
	}
	return v
}

// clean fails the test unless v has no mismatch, and an account that adds up.
func (v verdict) clean(t *testing.T, r result) {
	t.Helper()
	if r.status != exitOK || v.Mismatches != 0 || v.Seen != v.Delivered+v.Lost || v.Lost != v.LostRingFull+v.LostRecursion {
		t.Errorf("exit status %d, %s%s", r.status, r.stdout, r.stderr)
	}
}

// churn opens and closes connections until the test, or the function that it
// returns, ends it; at most 2,000 a second, as the machine has other work.
func churn(t *testing.T) (stop func()) {
	t.Helper()
	l := listen(t, "tcp", "127.0.0.1:0")
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				c.Read(make([]byte, 1))
				c.Close()
			}()
		}
	}()
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(500 * time.Microsecond):
			}
			if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
				c.(*net.TCPConn).SetLinger(0) // no TIME_WAIT, of which there is no end here
				c.Close()
			}
		}
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			close(end)
			<-ended
		}
	}
	t.Cleanup(stop)
	return stop
}

// begin starts cmd; the function that it returns waits for its result.
func begin(t *testing.T, cmd *exec.Cmd) (end func() result) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return func() result {
		cmd.Wait() // the status says it
		return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	}
}

var lostPattern = regexp.MustCompile(`(?m)^conntrace: \d+ events? in .*; (none|\d+) lost`)

// lostBy returns how many events were lost by the summary of watch.
func lostBy(t *testing.T, stderr string) uint64 {
	t.Helper()
	m := lostPattern.FindStringSubmatch(stderr)
	if m == nil {
		t.Fatalf("no summary: %q", stderr)
	}
	n, _ := strconv.ParseUint(m[1], 10, 64) // 0 for none
	return n
}

func TestVerify(t *testing.T) {
	testenv.Root(t)
	t.Parallel()
	churn(t)
	for _, args := range [][]string{
		{},
		{"--against", "ebpf", "--kind", "tcp4"},
		{"--owners"},
	} {
		r := conntrace(t, append([]string{"verify", "-o", "json", "--count", "3", "--interval", "200ms"}, args...)...)
		v := verdictOf(t, r)
		v.clean(t, r)
		if v.Looks < 3 || v.Rows == 0 || v.Seen == 0 {
			t.Errorf("verify %v: %+v", args, v)
		}
	}
}

// TestVerifyText checks what a person reads, and that a signal ends it with that.
func TestVerifyText(t *testing.T) {
	testenv.Root(t)
	t.Parallel()
	listen(t, "tcp", "127.0.0.1:0")
	cmd := command(t, "verify", "-q", "--duration", "1m", "--interval", "100ms")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second) // so that it has looked at least once
	cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	if r.status != exitOK || r.stderr != "" || strings.Count(r.stdout, "\n") != 1 ||
		!strings.Contains(r.stdout, " rows in ") || !strings.Contains(r.stdout, ": 0 mismatches, ") || !strings.Contains(r.stdout, "; none lost") && !strings.Contains(r.stdout, ", none lost, ") {
		t.Errorf("verify: exit status %d, stdout %q, stderr %q", r.status, r.stdout, r.stderr)
	}
	if took := time.Since(start); took > 40*time.Second {
		t.Errorf("it ended after %v", took)
	}
}

func TestVerifyRefused(t *testing.T) {
	cmd := command(t, "verify")
	asNobody(cmd)
	if r := finish(t, cmd); r.status != exitPermission || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("verify: exit status %d, stdout %q, stderr %q", r.status, r.stdout, r.stderr)
	}
}

// TestStopped: a tracker that does not run for a while under load loses events. It
// says how many and where, and its table is true again afterwards.
func TestStopped(t *testing.T) {
	testenv.Root(t)
	t.Parallel()
	stopFor := 10 * time.Second
	if testing.Short() {
		stopFor = 2 * time.Second
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	stopChurn := churn(t)

	checker := command(t, "verify", "-o", "json", "--duration", (stopFor + 4*time.Second).String(), "--ring-buffer", "1MiB")
	check := begin(t, checker)
	w := watch(t, "-o", "json", "--ring-buffer", "1MiB", "--event", "seed", "--port", inetPort(l))
	w.next(t, inetAddr(l.Addr())) // it tracks
	time.Sleep(2 * time.Second)   // and so does verify
	trackers := []*os.Process{checker.Process, w.Process}
	for _, p := range trackers {
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(stopFor)
	for _, p := range trackers {
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}

	var told uint64 // by the first gap, which is that of the stop
	for told == 0 {
		var ev struct{ Lost uint64 }
		if err := json.Unmarshal([]byte(w.line(t)), &ev); err != nil {
			t.Fatal(err)
		}
		told = ev.Lost
	}
	stopChurn() // so that losses come to an end, whatever the load of the machine
	w.Process.Signal(syscall.SIGINT)
	for {
		line, err := w.out.ReadString('\n')
		if err != nil {
			break
		}
		var ev struct {
			Event string
			Lost  uint64
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatal(err)
		}
		if ev.Event == "gap" {
			told += ev.Lost
		}
	}
	if err := w.Wait(); err != nil {
		t.Errorf("watch: %v; stderr %q", err, &w.stderr)
	}
	if lost := lostBy(t, w.stderr.String()); told != lost {
		t.Errorf("the gaps tell of %d events, the summary of %d: %q", told, lost, &w.stderr)
	}
	if note := "the ring buffer is full, and events are lost"; strings.Count(w.stderr.String(), note) != 1 || !strings.Contains(w.stderr.String(), "--ring-buffer") {
		t.Errorf("stderr lacks %q, or has it twice: %q", note, &w.stderr)
	}

	r := check()
	v := verdictOf(t, r)
	v.clean(t, r)
	if v.LostRingFull == 0 {
		t.Errorf("nothing was lost: %+v", v)
	}
}
