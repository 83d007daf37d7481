// Package tracepoint attaches BPF programs to classic tracepoints, also where
// tracefs is not mounted.
package tracepoint

import "errors"

// Why the number of a tracepoint, which only tracefs knows, cannot be had.
var (
	ErrNotMounted = errors.New("tracefs is not mounted")
	ErrClosed     = errors.New("tracefs is closed to this user")
)
