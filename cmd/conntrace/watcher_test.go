package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"os/exec"
	"regexp"
	"testing"
)

// event is what the tests read of an event.
type event struct {
	Time, Event, Proto string
	Laddr, Raddr       json.RawMessage
	Status, Direction  *string
	OldStatus          *string `json:"old_status"`
	PID                *int
	Error, Reason      *string
	BytesSent          *uint64 `json:"bytes_sent"`
	Duration           *int64  `json:"duration_ns"`
}

// A watcher is a running `conntrace watch`.
type watcher struct {
	*exec.Cmd
	out    *bufio.Reader
	pipe   interface{ Close() error }
	stderr bytes.Buffer
}

func watch(t *testing.T, args ...string) *watcher {
	t.Helper()
	w := &watcher{Cmd: command(t, append([]string{"watch"}, args...)...)}
	w.start(t)
	return w
}

func (w *watcher) start(t *testing.T) {
	t.Helper()
	pipe, err := w.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.out, w.pipe = bufio.NewReader(pipe), pipe
	w.Cmd.Stderr = &w.stderr
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Process.Kill() })
}

func (w *watcher) line(t *testing.T) string {
	t.Helper()
	line, err := w.out.ReadString('\n')
	if err != nil {
		t.Fatalf("%v; stderr: %s", err, &w.stderr)
	}
	return line
}

// next returns the next event with this address at its local end.
func (w *watcher) next(t *testing.T, laddr string) event {
	t.Helper()
	for {
		var ev event
		line := w.line(t)
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if string(ev.Laddr) == laddr {
			return ev
		}
	}
}

// end waits for the watcher and checks its status and summary.
func (w *watcher) end(t *testing.T) {
	t.Helper()
	if _, err := w.out.WriteTo(&bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(); err != nil {
		t.Fatalf("%v; stderr: %s", err, &w.stderr)
	}
	summary := regexp.MustCompile(`(?m)^conntrace: \d+ events? in [0-9.]+m?s.*; (none|\d+) lost`)
	if !summary.Match(w.stderr.Bytes()) {
		t.Errorf("no summary on stderr: %q", &w.stderr)
	}
}

func inetPort(l net.Listener) string {
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
