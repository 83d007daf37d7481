package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestDropPrivileges: a tracker whose process has given up its capabilities goes on
// to see events and to read the tables, by iterators too; no thread keeps more than
// it should.
func TestDropPrivileges(t *testing.T) {
	testenv.Root(t)
	if !dropsPrivileges() {
		if err := dropPrivileges(t.Context(), tracker.SourceEBPF); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("with cgo: %v", err)
		}
		t.Skip("this build uses cgo, which hides threads: run with CGO_ENABLED=0")
	}
	const admin, bpf = 1 << unix.CAP_SYS_ADMIN, 1 << unix.CAP_BPF
	const whose = 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH
	for name, tt := range map[string]struct {
		confinement
		kept uint64
	}{
		"root":    {confinement{}, whose | admin},
		"service": {confinement{User: true, Tracefs: true, Caps: service}, whose},
	} {
		t.Run(name, func(t *testing.T) {
			if keptCapabilities()&bpf != 0 {
				tt.kept |= bpf
			}
			cmd := confined(t, tt.confinement, command(t))
			cmd.Env = append(cmd.Env, droppedEnv+"=1")
			r := finish(t, cmd)
			var d dropped
			if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
				t.Fatalf("%v\n%s%s", err, r.stdout, r.stderr)
			}
			if want := []string{fmt.Sprintf("%016x", tt.kept)}; !slices.Equal(d.Effective, want) || !slices.Equal(d.Permitted, want) {
				t.Errorf("effective %v, permitted %v, want %v", d.Effective, d.Permitted, want)
			}
			if !d.Event || !d.Row || !d.Iterators || d.Seen == 0 {
				t.Errorf("after that: %+v", d)
			}
		})
	}
}

// TestWatchDropsPrivileges: watch does so before it shows anything.
func TestWatchDropsPrivileges(t *testing.T) {
	testenv.Root(t)
	if !dropsPrivileges() {
		t.Skip("this build uses cgo, which hides threads: run with CGO_ENABLED=0")
	}
	for _, source := range []string{"ebpf", "netlink", "procfs"} {
		w := watch(t, "--backend", source)
		w.line(t)
		effective, _, err := capabilities(w.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{fmt.Sprintf("%016x", keptCapabilities())}; !slices.Equal(effective, want) {
			t.Errorf("%s: effective %v, want %v", source, effective, want)
		}
		w.Process.Signal(unix.SIGINT)
		w.end(t)
	}
}

const droppedEnv = "CONNTRACE_TEST_DROPPED"

// dropped is what is left once the capabilities are gone.
type dropped struct {
	Effective, Permitted []string // sets of capabilities that a thread has
	Event                bool     // a connection was seen, with its process
	Row                  bool     // so was its row, looked for anew
	Iterators            bool     // snapshots still come from iterators
	Seen                 uint64   // the account can be read
}

// init is what TestDropPrivileges starts.
func init() {
	if os.Getenv(droppedEnv) == "" || os.Getenv(confineEnv) != "" {
		return
	}
	d, err := drop()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(d)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func drop() (d dropped, err error) {
	ctx := context.Background()
	t, err := tracker.Open(ctx, tracker.Config{Source: tracker.SourceEBPF, Freshness: tracker.AlwaysExact})
	if err != nil {
		return d, err
	}
	defer t.Close()
	if err := dropPrivileges(ctx, t.Info().Source); err != nil {
		return d, err
	}
	if d.Effective, d.Permitted, err = capabilities(os.Getpid()); err != nil {
		return d, err
	}

	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return d, err
	}
	defer l.Close()
	s, err := t.Subscribe(tracker.Filter{NoSeed: true, Events: []conn.EventType{conn.EventConnect}, PIDs: []int32{int32(os.Getpid())}})
	if err != nil {
		return d, err
	}
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return d, err
	}
	defer c.Close()
	e, err := s.Next(ctx)
	if err != nil {
		return d, err
	}
	d.Event = e.Laddr.String() == c.LocalAddr().String()
	rows, err := t.Connections(conn.KindTCP4)
	if err != nil {
		return d, err
	}
	d.Row = slices.ContainsFunc(rows, func(r conn.Conn) bool {
		return r.Laddr.String() == c.LocalAddr().String() && r.PID == int32(os.Getpid()) && r.FD > 0
	})
	snap, err := tracker.TakeSnapshot(ctx, tracker.SnapshotConfig{Source: tracker.SourceEBPF, Query: fallback.Query{Kind: conn.KindTCP4}})
	if err != nil {
		return d, err
	}
	d.Iterators = len(snap.Conns) >= 3
	d.Seen = t.Stats().Seen
	return d, nil
}

// capabilities returns the effective and the permitted sets of the threads of a
// process, each once.
func capabilities(pid int) (effective, permitted []string, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return nil, nil, err
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, nil, err
		}
		for line := range strings.Lines(string(b)) {
			if set, ok := strings.CutPrefix(line, "CapEff:\t"); ok {
				effective = append(effective, strings.TrimSpace(set))
			} else if set, ok := strings.CutPrefix(line, "CapPrm:\t"); ok {
				permitted = append(permitted, strings.TrimSpace(set))
			}
		}
	}
	slices.Sort(effective)
	slices.Sort(permitted)
	return slices.Compact(effective), slices.Compact(permitted), nil
}
