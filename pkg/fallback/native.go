package fallback

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// Native returns the source that reads the socket tables of a system other than
// Linux: the IP Helper API of Windows; libproc and sysctls of macOS; sysctls of FreeBSD,
// OpenBSD and NetBSD; the MIB-2 tables of illumos and Solaris. The error wraps
// [errors.ErrUnsupported] where there is none.
func Native() (Source, error) {
	system, err := openNative()
	if err != nil {
		return nil, err
	}
	return &nativeSource{system}, nil
}

// A nativeSystem reads the tables of one system; there is a file for each.
type nativeSystem interface {
	// kinds returns what the system has tables of.
	kinds() conn.Kind

	// read appends the sockets of q.Kind to s.Conns, with the PID and FD that the
	// tables have, and what it could not understand to s.Warnings. It may leave out those
	// of other processes if q.PID is not 0, and set Conn.Holders if q asks for them.
	read(ctx context.Context, q Query, s *Snapshot) error

	// processes returns a function that looks up a process; it is good for one snapshot.
	// The function's error wraps [conn.ErrNoSuchProcess] if there is none. What it may
	// not learn of a process that exists is unknown, and no error.
	processes() (lookup func(pid int32) (*conn.Process, error), err error)
}

// A nativeSource makes psutil's rows of what a system tells.
type nativeSource struct{ system nativeSystem }

func (s *nativeSource) Name() string { return "native" }

// Snapshot implements [Source]. There is one network namespace.
func (s *nativeSource) Snapshot(ctx context.Context, q Query) (snap Snapshot, err error) {
	if err := q.Kind.Check(); err != nil {
		return Snapshot{}, err
	}
	asked := q.Kind
	q.Kind &= s.system.kinds()
	// psutil's "all" is all that there is; a kind that is named must be one that there is.
	if asked != q.Kind && asked != conn.KindAll {
		return Snapshot{}, fmt.Errorf("%s has no table of %s sockets: %w", runtime.GOOS, asked&^q.Kind, errors.ErrUnsupported)
	}
	if q.PID != 0 {
		lookup, err := s.system.processes()
		if err == nil {
			_, err = lookup(q.PID)
		}
		if err != nil {
			return Snapshot{}, err
		}
	}
	if err := s.system.read(ctx, q, &snap); err != nil {
		return Snapshot{}, err
	}
	if len(snap.Warnings) == 0 {
		snap.Namespaces = []uint32{0}
	}
	read := time.Now()
	snap.Conns = nativeRows(snap.Conns, q.PID)
	if lookup, err := s.system.processes(); err != nil {
		snap.Warnings = append(snap.Warnings, err)
	} else {
		addNativeProcesses(snap.Conns, lookup, read)
	}
	return snap, nil
}

// nativeRows leaves only the rows of the process pid, unless that is 0, and no two
// that are equal. It uses the memory of conns.
func nativeRows(conns []conn.Conn, pid int32) []conn.Conn {
	rows := conns[:0]
	var suspects []int32 // a connection is told from others by its addresses
	for i := range conns {
		if pid != 0 && conns[i].PID != pid {
			continue
		}
		if !conns[i].Raddr.IsValid() || conns[i].Raddr.IsUnix() {
			suspects = append(suspects, int32(len(rows)))
		}
		rows = append(rows, conns[i])
	}
	return withoutDoubles(rows, suspects)
}

// addNativeProcesses fills in what lookup knows of the owners of rows, which were
// read at the time; rows of one process share it. It is left unknown for a process
// that has ended since, even if another one has its PID by now.
func addNativeProcesses(rows []conn.Conn, lookup func(pid int32) (*conn.Process, error), read time.Time) {
	known := make(map[int32]*conn.Process)
	for i := range rows {
		pid := rows[i].PID
		if pid == 0 || rows[i].Process != nil {
			continue // unowned, or its table has told of the process
		}
		p, ok := known[pid]
		if !ok {
			if p, _ = lookup(pid); p != nil && p.Start.After(read) {
				p = nil
			}
			known[pid] = p
		}
		rows[i].Process = p
	}
}
