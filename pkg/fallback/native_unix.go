//go:build darwin || freebsd || openbsd || netbsd || illumos || solaris

package fallback

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/pkg/conn"
)

// A unixSystem reads the tables of macOS, the BSDs and illumos. Each of these has a file
// with the constant nativeKinds, and with
//
//   - readNative, which reads the raw tables that have the sockets of q.Kind, and, if
//     q.PID is not 0, need not have others than that process holds;
//   - processOf, which returns what is known of a process, nil if that is nothing.
type unixSystem struct{ tables *rawtable.Unix }

func openNative() (nativeSystem, error) {
	tables, err := rawtable.UnixOf(runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	return unixSystem{tables}, nil
}

func (unixSystem) kinds() conn.Kind { return nativeKinds }

func (u unixSystem) read(ctx context.Context, q Query, snap *Snapshot) error {
	tables, hidden, err := readNative(ctx, q)
	if err != nil {
		return err
	}
	rows, warnings, err := u.tables.Decode(tables, rawtable.Options{PID: q.PID, Holders: q.Holders})
	if err != nil {
		return err
	}
	for _, warning := range warnings {
		if q.PID != 0 && warning == rawtable.ErrAddressesHidden {
			return fmt.Errorf("process %d: %w", q.PID, warning)
		}
	}
	snap.Hidden += hidden
	snap.Warnings = append(snap.Warnings, warnings...)
	for i := range rows {
		if kind := rows[i].Kind(); kind != 0 && q.Kind.Has(kind) {
			snap.Conns = append(snap.Conns, rows[i])
		}
	}
	return nil
}

func (unixSystem) processes() (lookup func(pid int32) (*conn.Process, error), err error) {
	return func(pid int32) (*conn.Process, error) {
		// A process that may not be sent signals exists.
		if unix.Kill(int(pid), 0) == unix.ESRCH {
			return nil, conn.ErrNoSuchProcess
		}
		return processOf(pid), nil
	}, nil
}

// rawTables reads all tables, and leaves in them what the process pid holds, unless
// that is 0.
func rawTables(ctx context.Context, pid int32) (rawtable.Tables, error) {
	system, err := rawtable.UnixOf(runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	all, _, err := readNative(ctx, Query{Kind: nativeKinds})
	if err != nil || pid == 0 {
		return all, err
	}
	return system.Filter(all, pid)
}
