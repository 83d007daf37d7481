package fallback

import (
	"unsafe" // and for go:linkname
)

// What libproc.h declares, without cgo: the functions are called through their
// trampolines in libproc_darwin.s, as package syscall calls libSystem. System call 336,
// which they make, would be less to write, but Apple promises its functions, not its
// numbers.

// From sys/proc_info.h.
const (
	procAllPIDs         = 1 // PROC_ALL_PIDS
	procPIDListFDs      = 1 // PROC_PIDLISTFDS
	procPIDTBSDInfo     = 3 // PROC_PIDTBSDINFO
	procPIDFDSocketInfo = 3 // PROC_PIDFDSOCKETINFO
)

//go:cgo_import_dynamic libproc_proc_listpids proc_listpids "/usr/lib/libSystem.B.dylib"
//go:cgo_import_dynamic libproc_proc_pidinfo proc_pidinfo "/usr/lib/libSystem.B.dylib"
//go:cgo_import_dynamic libproc_proc_pidfdinfo proc_pidfdinfo "/usr/lib/libSystem.B.dylib"

// The addresses of the trampolines.
var (
	procListPIDsTrampoline  uintptr
	procPIDInfoTrampoline   uintptr
	procPIDFDInfoTrampoline uintptr
)

//go:linkname syscall_syscall6 syscall.syscall6
func syscall_syscall6(fn, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2 uintptr, errno uintptr)

// procListPIDs calls proc_listpids(3). It returns how many bytes it has put into buf, or
// would for a nil one; 0 if it fails.
func procListPIDs(kind, info uint32, buf []byte) int {
	r, _, _ := syscall_syscall6(procListPIDsTrampoline, uintptr(kind), uintptr(info), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0)
	return int(int32(r))
}

// procPIDInfo calls proc_pidinfo. It returns how many bytes it has put into buf, 0 if
// it fails; the reason is lost, as syscall6 takes errno only for a result of -1.
func procPIDInfo(pid int32, flavor int, buf []byte) int {
	r, _, _ := syscall_syscall6(procPIDInfoTrampoline, uintptr(pid), uintptr(flavor), 0, uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0)
	return int(int32(r))
}

// procPIDFDInfo is procPIDInfo for a descriptor, by proc_pidfdinfo.
func procPIDFDInfo(pid, fd int32, flavor int, buf []byte) int {
	r, _, _ := syscall_syscall6(procPIDFDInfoTrampoline, uintptr(pid), uintptr(fd), uintptr(flavor), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0)
	return int(int32(r))
}
