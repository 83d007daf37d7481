// Package sysinfo reads the facts about the running system that decide how
// connections can be tracked on it.
package sysinfo

import "fmt"

// Info describes the system. What could not be read is empty.
type Info struct {
	OS      string `json:"os"`      // as in runtime.GOOS
	Arch    string `json:"arch"`    // as in runtime.GOARCH
	Release string `json:"release"` // of the kernel, as uname -r shows it, or of Windows
	Linux   *Linux `json:"linux,omitempty"`
}

// Before reports whether the kernel is older than major.minor. What cannot be read
// is not.
func (i Info) Before(major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(i.Release, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a < major || a == major && b < minor
}

// Linux holds what decides whether BPF can be had.
type Linux struct {
	UID             int          `json:"uid"`                        // effective user ID
	BTF             bool         `json:"btf"`                        // the kernel describes its types
	Lockdown        string       `json:"lockdown,omitempty"`         // none, integrity or confidentiality
	UnprivilegedBPF string       `json:"unprivileged_bpf,omitempty"` // kernel.unprivileged_bpf_disabled
	Tracefs         string       `json:"tracefs,omitempty"`          // where it is mounted
	Seccomp         string       `json:"seccomp,omitempty"`          // none, strict or filter
	HostPIDs        bool         `json:"host_pid_namespace"`         // PIDs here are those of the host
	HostUsers       bool         `json:"host_user_namespace"`        // capabilities here are those of the host
	Capabilities    []Capability `json:"capabilities"`               // those that matter here
}

// A Capability is one of capabilities(7), and whether this process has it in its
// effective set.
type Capability struct {
	Name    string `json:"name"`
	Present bool   `json:"present"`
}
