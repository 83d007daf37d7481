package sysinfo

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/windows"
)

// Read reads the facts.
func Read() Info {
	v := windows.RtlGetVersion()
	return Info{
		OS:      runtime.GOOS,
		Arch:    runtime.GOARCH,
		Release: fmt.Sprintf("%d.%d.%d", v.MajorVersion, v.MinorVersion, v.BuildNumber),
	}
}
