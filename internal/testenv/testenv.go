// Package testenv tells tests what the machine they run on can do.
//
// A test that needs what is missing is skipped, with the reason. Where the
// environment says CONNTRACE_REQUIRE_PRIVILEGED=1, as in CI, it fails instead, so
// that no test is left out unseen.
package testenv

import (
	"os"
	"os/exec"
	"testing"
)

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root")
	}
}

// Psutil returns a Python interpreter that has psutil, or skips the test. The
// system's own interpreter comes first: it is the one that the distribution's
// python3-psutil belongs to.
func Psutil(t testing.TB) string {
	t.Helper()
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(python, "-c", "import psutil").Run() == nil {
			return python
		}
	}
	Missing(t, "python3 with psutil")
	return ""
}

// Missing skips the test because it needs what, or fails it if nothing may be
// missing here.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CONNTRACE_REQUIRE_PRIVILEGED") == "1" {
		t.Fatalf("needs %s, and CONNTRACE_REQUIRE_PRIVILEGED=1", what)
	}
	t.Skipf("needs %s", what)
}
