package sysinfo

import (
	"errors"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// The first namespaces: PROC_PID_INIT_INO and PROC_USER_INIT_INO in
// include/linux/proc_ns.h.
const (
	hostPIDNamespace  = "pid:[4026531836]"
	hostUserNamespace = "user:[4026531837]"
)

// Read reads the facts.
func Read() Info {
	info := Info{OS: runtime.GOOS, Arch: runtime.GOARCH}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		info.Release = unix.ByteSliceToString(name.Release[:])
	}

	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	pids, _ := os.Readlink("/proc/self/ns/pid")
	users, _ := os.Readlink("/proc/self/ns/user")
	tracefs := parseTracefs(read("/proc/self/mounts"))
	if _, err := os.Stat(tracefs + "/events"); errors.Is(err, fs.ErrNotExist) {
		tracefs = "" // something else is mounted over it
	}
	status := parseStatus(read("/proc/self/status"))
	info.Linux = &Linux{
		UID:             os.Geteuid(),
		BTF:             err == nil,
		Lockdown:        parseLockdown(read("/sys/kernel/security/lockdown")),
		UnprivilegedBPF: parseUnprivilegedBPF(read("/proc/sys/kernel/unprivileged_bpf_disabled")),
		Tracefs:         tracefs,
		Seccomp:         status.seccomp,
		HostPIDs:        pids == hostPIDNamespace,
		HostUsers:       users == hostUserNamespace,
		Capabilities:    status.capabilities,
	}
	return info
}

// read returns a file's text, "" if it cannot be read: there is no fact then.
func read(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

// SocketsInUse returns how many sockets there are in the caller's network
// namespace, those in TIME_WAIT left out; 0 if that cannot be told.
func SocketsInUse() int { return parseSocketsInUse(read("/proc/thread-self/net/sockstat")) }
