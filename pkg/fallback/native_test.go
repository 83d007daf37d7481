package fallback

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A fakeSystem tells what no real one does when a test wants it to.
type fakeSystem struct {
	rows     []conn.Conn
	warning  error
	err      error // of read
	procs    map[int32]*conn.Process
	procsErr error
}

func (f *fakeSystem) kinds() conn.Kind { return conn.KindInet }

func (f *fakeSystem) read(_ context.Context, _ Query, s *Snapshot) error {
	s.Conns = append(s.Conns, f.rows...)
	if f.warning != nil {
		s.Warnings = append(s.Warnings, f.warning)
	}
	return f.err
}

func (f *fakeSystem) processes() (func(int32) (*conn.Process, error), error) {
	return func(pid int32) (*conn.Process, error) {
		if p := f.procs[pid]; p != nil {
			return p, nil
		}
		return nil, conn.ErrNoSuchProcess
	}, f.procsErr
}

func TestNativeRows(t *testing.T) {
	listener := conn.Conn{FD: -1, Family: conn.Inet, Type: conn.Stream, Laddr: conn.AddrIPv4([4]byte{}, 80), Status: conn.StatusListen, PID: 1}
	other := listener
	other.PID = 2
	connection := listener
	connection.Raddr, connection.Status, connection.PID = conn.AddrIPv4([4]byte{127, 0, 0, 1}, 5), conn.StatusEstablished, 3
	orphan := connection
	orphan.Laddr, orphan.PID = conn.AddrIPv4([4]byte{}, 81), 0

	known := &conn.Process{PID: 1, Comm: "known", Start: time.Now().Add(-time.Minute)}
	system := &fakeSystem{
		rows: []conn.Conn{listener, other, listener, connection, orphan},
		procs: map[int32]*conn.Process{
			1: known,
			2: {PID: 2, Comm: "has the PID of another", Start: time.Now().Add(time.Hour)},
		},
	}
	src := &nativeSource{system}
	snap, err := src.Snapshot(t.Context(), Query{Kind: conn.KindAll})
	if err != nil || len(snap.Warnings) != 0 || !slices.Equal(snap.Namespaces, []uint32{0}) {
		t.Fatalf("%+v, %v", snap, err)
	}
	var pids []int32
	for _, c := range snap.Conns {
		pids = append(pids, c.PID)
		if want := map[int32]*conn.Process{1: known}[c.PID]; c.Process != want {
			t.Errorf("process of %d: %+v, want %+v", c.PID, c.Process, want)
		}
	}
	if want := []int32{1, 2, 3, 0}; !slices.Equal(pids, want) {
		t.Errorf("rows of processes %v, want %v", pids, want)
	}

	snap, err = src.Snapshot(t.Context(), Query{Kind: conn.KindTCP, PID: 1})
	if err != nil || len(snap.Conns) != 1 || snap.Conns[0].PID != 1 {
		t.Errorf("of process 1: %+v, %v", snap, err)
	}
}

func TestNativeErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name     string
		system   fakeSystem
		query    Query
		err      error // nil: any
		warnings int
	}{
		{"no kind", fakeSystem{}, Query{}, nil, -1},
		{"a kind that is not there", fakeSystem{}, Query{Kind: conn.KindUnix}, errors.ErrUnsupported, -1},
		{"one of two kinds is not there", fakeSystem{}, Query{Kind: conn.KindUnix | conn.KindTCP}, errors.ErrUnsupported, -1},
		{"no process", fakeSystem{}, Query{Kind: conn.KindAll, PID: 7}, conn.ErrNoSuchProcess, -1},
		{"no list of processes", fakeSystem{procsErr: broken}, Query{Kind: conn.KindAll, PID: 7}, broken, -1},
		{"no table", fakeSystem{err: io.ErrUnexpectedEOF}, Query{Kind: conn.KindAll}, io.ErrUnexpectedEOF, -1},
		{"an odd row", fakeSystem{warning: broken}, Query{Kind: conn.KindAll}, nil, 1},
		{"processes unknown", fakeSystem{procsErr: broken}, Query{Kind: conn.KindAll}, nil, 1},
	} {
		snap, err := (&nativeSource{&tt.system}).Snapshot(t.Context(), tt.query)
		if (err != nil) != (tt.warnings < 0) || tt.err != nil && !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil && len(snap.Warnings) != tt.warnings || len(snap.Namespaces) > 0 && tt.system.warning != nil {
			t.Errorf("%s: %+v", tt.name, snap)
		}
	}
}

// TestNativeDeleteTCB: the last state of a connection on Windows is its end.
func TestNativeDeleteTCB(t *testing.T) {
	c := conn.Conn{
		FD: -1, Family: conn.Inet, Type: conn.Stream, Status: conn.StatusEstablished, PID: 1,
		Laddr: conn.AddrIPv4([4]byte{127, 0, 0, 1}, 5000), Raddr: conn.AddrIPv4([4]byte{127, 0, 0, 1}, 80),
	}
	system := &fakeSystem{rows: []conn.Conn{c}}
	p := NewPoller(&nativeSource{system}, Query{Kind: conn.KindTCP})
	for _, step := range []struct {
		status conn.Status
		want   []conn.EventType
	}{
		{conn.StatusEstablished, []conn.EventType{conn.EventSeed}},
		{conn.StatusDeleteTCB, []conn.EventType{conn.EventClose}},
		{conn.StatusDeleteTCB, nil},
	} {
		system.rows[0].Status = step.status
		events, err := p.Poll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []conn.EventType
		for _, e := range events {
			got = append(got, e.Type)
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("%s: got %v, want %v", step.status, got, step.want)
		}
	}
}
