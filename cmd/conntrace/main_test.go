package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMain makes this test binary conntrace itself when a test starts it again,
// so that tests see what a user sees: streams, exit status and signals.
func TestMain(m *testing.M) {
	if os.Getenv("CONNTRACE_TEST_MAIN") == "1" {
		main()
	}
	os.Exit(m.Run())
}

// command returns the command line args, not started yet. It is killed if the
// test takes far too long.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), "CONNTRACE_TEST_MAIN=1", "HOST_PROC=", "LC_ALL=C.UTF-8",
		"GORACE=atexit_sleep_ms=0") // a race detector waits a second at each exit, for others to report
	return cmd
}

// result is what a finished command leaves.
type result struct {
	stdout, stderr string
	status         int
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func conntrace(t *testing.T, args ...string) result {
	t.Helper()
	return finish(t, command(t, args...))
}

// mustRun is conntrace for what must succeed; it returns stdout.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	r := conntrace(t, args...)
	if r.status != exitOK {
		t.Fatalf("conntrace %s: exit status %d: %s", strings.Join(args, " "), r.status, r.stderr)
	}
	return r.stdout
}
