// Package fallback reads the socket tables that an operating system gives to
// those who ask: sock_diag and procfs on Linux, and what Windows, macOS, FreeBSD,
// OpenBSD, NetBSD and illumos have ([Native]). It answers with psutil's rows ([Source]),
// and turns successive answers into events ([Poller]). A [Recording] keeps an answer
// as the system gave it.
//
// It is what conntrace uses where BPF cannot be had, and what seeds the live
// tracker where it can.
package fallback

import (
	"context"
	"errors"
	"fmt"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A Query says which rows a [Source] shall give.
type Query struct {
	Kind conn.Kind // what sockets; must pass [conn.Kind.Check]

	// PID asks for the sockets that this process holds, each with its own
	// descriptor there. 0 asks for those of the whole system.
	PID int32

	// Holders asks for Conn.Holders: every descriptor of each socket.
	Holders bool

	// AllNamespaces asks for the sockets of every network namespace that has a
	// process, instead of the caller's only.
	AllNamespaces bool

	// Strays asks for Snapshot.Strays. It is not for a query of one process.
	Strays bool
}

// A Snapshot is the answer to a [Query].
type Snapshot struct {
	Conns []conn.Conn // psutil's rows, in no order

	// Warnings name what could not be read or understood, where the rest is
	// sound: a malformed line, a torn dump. One each.
	Warnings []error

	// Namespaces are the network namespaces whose tables were read whole: a socket of
	// theirs that is not among Conns does not exist. 0 is one whose number is unknown.
	Namespaces []uint32

	// Strays are the inodes of sockets that a process holds but that are not among
	// Conns: of other kinds, or of namespaces that no process is in. nil: not asked for,
	// or not known outside Linux.
	Strays []uint64

	// Hidden counts the processes whose descriptors the caller may not read.
	// Their sockets are among Conns without an owner.
	Hidden int
}

// An EnterError says that the network namespace that the procfs at Root has the view
// of could not be entered.
type EnterError struct {
	Root string
	Err  error
}

func (e *EnterError) Error() string {
	return fmt.Sprintf("network namespace of process 1 in %s: %v", e.Root, e.Err)
}

func (e *EnterError) Unwrap() error { return e.Err }

// ErrNoSockDiag says that a kernel answers no sock_diag requests: it has no such
// module, or has not loaded it.
var ErrNoSockDiag = fmt.Errorf("the kernel has no sock_diag: %w", errors.ErrUnsupported)

// A Source gives snapshots of the socket tables. Its methods may be called by
// several goroutines at once.
type Source interface {
	// Name returns netlink, procfs or native.
	Name() string

	// Snapshot reads the tables. Its errors wrap [conn.ErrNoSuchProcess],
	// [io/fs.ErrPermission], [errors.ErrUnsupported] or the
	// context's error where they apply.
	Snapshot(ctx context.Context, q Query) (Snapshot, error)
}
