package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/conntrace/conntrace/pkg/fallback"
)

// TestRecord records the samples, and reads and decodes what was written.
func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "linux")
	if out := mustRun(t, "record", dir); !strings.HasPrefix(out, dir+": ") {
		t.Errorf("record: %q", out)
	}
	recording, err := fallback.ReadRecording(dir)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := recording.Rows()
	if err != nil {
		t.Fatal(err)
	}
	if recorded, err := os.ReadFile(filepath.Join(dir, "rows.json")); err != nil || string(recorded) != string(rows) {
		t.Errorf("%v: decoded\n%s\nrecorded\n%s", err, rows, recorded)
	}
	type row struct {
		Family, Type, Status string
		Laddr, Raddr         *string
		PID                  *int32
	}
	var bySource map[string][]row
	if err := json.Unmarshal(rows, &bySource); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"netlink", "procfs"} {
		for _, want := range []row{
			{Family: "AF_INET", Type: "SOCK_STREAM", Status: "LISTEN"},
			{Family: "AF_INET", Type: "SOCK_STREAM", Status: "ESTABLISHED"},
			{Family: "AF_INET", Type: "SOCK_STREAM", Status: "CLOSE_WAIT"},
			{Family: "AF_INET", Type: "SOCK_DGRAM", Status: "NONE"},
			{Family: "AF_UNIX", Type: "SOCK_STREAM", Status: "NONE"},
			{Family: "AF_UNIX", Type: "SOCK_DGRAM", Status: "NONE"},
		} {
			if !slices.ContainsFunc(bySource[source], func(r row) bool {
				return r.Family == want.Family && r.Type == want.Type && r.Status == want.Status && r.PID != nil && *r.PID == recording.Manifest.PID
			}) {
				t.Errorf("%s has no row like %+v:\n%s", source, want, rows)
			}
		}
		for _, r := range bySource[source] {
			if r.Family != "AF_UNIX" && !strings.HasPrefix(*r.Laddr, "127.0.0.1:") && !strings.HasPrefix(*r.Laddr, "[::1]:") {
				t.Errorf("%s: a socket that is not on the loopback interface: %s", source, *r.Laddr)
			}
		}
	}

	if r := conntrace(t, "record", dir); r.status != exitFailed || !strings.Contains(r.stderr, "choose a new folder") {
		t.Errorf("into a folder with files: exit status %d, %q", r.status, r.stderr)
	}
	if r := conntrace(t, "record"); r.status != exitUsage || !strings.Contains(r.stderr, "which folder?") {
		t.Errorf("into no folder: exit status %d, %q", r.status, r.stderr)
	}
	all := filepath.Join(t.TempDir(), "all")
	mustRun(t, "record", "--all", all)
	if recording, err = fallback.ReadRecording(all); err != nil || recording.Manifest.PID != 0 {
		t.Errorf("record --all: %+v, %v", recording, err)
	}
}
