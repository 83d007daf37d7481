// Package rawtable decodes the socket tables of systems other than Linux: bytes in,
// rows out. It does no I/O and is the same on every system, so that each decoder can
// be tested and fuzzed anywhere; package fallback makes the system calls. There is
// one file for each system.
//
// # Unix
//
// [UnixOf] has the tables of macOS, the BSDs and illumos. Some of these systems tell of
// sockets in some tables and of descriptors in others, so that a [Unix] decodes all of
// them at once and joins them.
//
// # Windows
//
// Each table stands for itself. A decoder has the form
//
//	AppendX(dst []conn.Conn, raw []byte) ([]conn.Conn, error)
//
// It appends a row for each socket in raw, one that the system filled in, to dst.
// FD is -1 and PID is 0 where the records do not have them.
//
// # Errors
//
// No decoder panics, whatever raw holds, and none guesses:
//
//   - A [*SizeError] says that raw does not have the layout which the decoder is for.
//     dst comes back as it was: nothing in raw can be trusted.
//   - A [*StateError] says that sockets are in a state without a known name. Those are
//     left out, and all others are appended.
package rawtable

import (
	"fmt"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A SizeError says that a table, or a record in it, has another size than the layout
// that its decoder knows: it is of another version of the system, or torn.
type SizeError struct {
	Table string // what was decoded: "windows tcp4"
	Got   int    // bytes that there are, or that the record says it has
	Want  int    // bytes that there must be, at least
}

// Error returns one line.
func (e *SizeError) Error() string {
	return fmt.Sprintf("%s table: %d bytes instead of %d: this version of the system is not known", e.Table, e.Got, e.Want)
}

// A StateError says that TCP sockets were left out because their state has no known
// name.
type StateError struct {
	Table string
	State uint32 // of the first of them
	Rows  int    // how many were left out
}

// Error returns one line.
func (e *StateError) Error() string {
	return fmt.Sprintf("%s table: rows left out: %d, the first with the unknown TCP state %d", e.Table, e.Rows, e.State)
}

// states are the numbers that a system gives the TCP states. StatusNone marks those
// that it does not use.
type states []conn.Status

// lookup returns the status with the number n; ok reports whether there is one.
func (s states) lookup(n uint32) (status conn.Status, ok bool) {
	if uint64(n) >= uint64(len(s)) {
		return 0, false
	}
	return s[n], s[n] != conn.StatusNone
}

// A stateCheck counts the rows whose state is unknown. Its zero value is ready.
type stateCheck struct {
	err StateError
}

// leaveOut counts a row with an unknown state.
func (c *stateCheck) leaveOut(state uint32) {
	if c.err.Rows == 0 {
		c.err.State = state
	}
	c.err.Rows++
}

// result returns the [*StateError] of the table, nil if no row was left out.
func (c *stateCheck) result(table string) error {
	if c.err.Rows == 0 {
		return nil
	}
	c.err.Table = table
	return &c.err
}
