package fallback

import (
	"context"
	"runtime"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// An observer is what a [Poller] looks through: at a source, on behalf of one
// poller.
type observer interface {
	// look calls row with every TCP socket that exists, which row does not keep. A
	// socket that the kernel has reduced to its place in TIME_WAIT has that status,
	// whatever state it shows to others.
	look(ctx context.Context, row func(c *conn.Conn)) (warnings []error, err error)

	// identify finds the process of those sockets that have an inode and no PID, and
	// the direction where the kernel knows it. It returns how many processes may not be
	// looked into; -1 if not all were looked at.
	identify(ctx context.Context, sockets []*polled, listeners listeners) (hidden int, err error)

	// holds reports whether the descriptor is still of the socket.
	holds(c *conn.Conn) bool

	// count reads the kernel's counters; false if there are none.
	count() (counters, bool)

	// ephemeral returns the ports that those who connect are given.
	ephemeral() portRange

	// tellsCloses reports whether the kernel tells of sockets that it destroys.
	tellsCloses() bool

	// wait waits until the time, until the kernel has told of a socket, or until ctx
	// ends, whatever is first.
	wait(ctx context.Context, until time.Time)

	// closes calls f with every socket that the kernel has destroyed since the last
	// call, and returns how many more there were that it lost.
	closes(f func(d *destroyed)) (lost uint64, err error)

	close() error
}

// An observable is a source that has an observer of its own, one that tells more and
// costs less than comparing snapshots.
type observable interface {
	observe(q Query) (observer, error)
}

// counters are the kernel's account of TCP in a network namespace.
type counters struct {
	active      uint64 // connections that were begun here (ActiveOpens)
	passive     uint64 // connections that were begun by others (PassiveOpens)
	established uint64 // sockets in ESTABLISHED or CLOSE_WAIT now (CurrEstab)
	inUse       uint64 // sockets there are now, listeners included (sockstat)
}

// A destroyed is a socket that the kernel has destroyed.
type destroyed struct {
	conn.Conn
	established bool           // it was a connection, not an attempt
	direction   conn.Direction // who opened it, as far as the kernel knows
	close       func(conn.Direction) *conn.Close
}

// A snapshotObserver observes any source by taking snapshots, which name the
// processes as well.
type snapshotObserver struct {
	src    Source
	query  Query
	hidden int // processes in the last snapshot
}

func (o *snapshotObserver) look(ctx context.Context, row func(c *conn.Conn)) ([]error, error) {
	snap, err := o.src.Snapshot(ctx, o.query)
	if err != nil {
		return nil, err
	}
	for i := range snap.Conns {
		row(&snap.Conns[i])
	}
	o.hidden = snap.Hidden
	return snap.Warnings, nil
}

func (o *snapshotObserver) identify(context.Context, []*polled, listeners) (hidden int, err error) {
	return o.hidden, nil
}

func (o *snapshotObserver) holds(*conn.Conn) bool                            { return false }
func (o *snapshotObserver) count() (counters, bool)                          { return counters{}, false }
func (o *snapshotObserver) ephemeral() portRange                             { return ephemeralPorts(runtime.GOOS) }
func (o *snapshotObserver) tellsCloses() bool                                { return false }
func (o *snapshotObserver) closes(func(*destroyed)) (lost uint64, err error) { return 0, nil }
func (o *snapshotObserver) close() error                                     { return nil }

func (o *snapshotObserver) wait(ctx context.Context, until time.Time) { sleep(ctx, until) }

// sleep waits until the time, or until ctx ends.
func sleep(ctx context.Context, until time.Time) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
