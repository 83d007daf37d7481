//go:build unix

package render

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// errnoName returns the name of an error, such as ECONNREFUSED; "" if it has
// none.
func errnoName(e syscall.Errno) string { return unix.ErrnoName(e) }
