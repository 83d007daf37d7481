//go:build !unix

package render

import "syscall"

// errnoName returns "": only Linux tells why a connection attempt failed.
func errnoName(syscall.Errno) string { return "" }
