//go:build unix && !linux

package sysinfo

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Read reads the facts.
func Read() Info {
	info := Info{OS: runtime.GOOS, Arch: runtime.GOARCH}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		info.Release = unix.ByteSliceToString(name.Release[:])
	}
	return info
}
