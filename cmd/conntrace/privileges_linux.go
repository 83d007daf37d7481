package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// keptCapabilities are those that a running tracker may still need: to look again at
// whose the descriptors are, and to enter other network namespaces.
func keptCapabilities() uint64 {
	const whose = 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_SYS_ADMIN
	if sysinfo.Read().Before(5, 19) { // there each bpf(2) asks for it, also of what is loaded already
		return whose | 1<<unix.CAP_BPF
	}
	return whose
}

// dropPrivileges gives up, in all threads and for good, what a tracker of this source
// needed only to be opened. It fails with [errors.ErrUnsupported] if it cannot reach
// all threads.
func dropPrivileges(ctx context.Context, source tracker.Source) error {
	if !dropsPrivileges() {
		return fmt.Errorf("this build uses cgo: %w", errors.ErrUnsupported)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	kept := keptCapabilities()
	if (uint64(data[1].Permitted)<<32|uint64(data[0].Permitted))&^kept == 0 {
		return nil // there is nothing to give up
	}
	if source == tracker.SourceEBPF {
		// The iterators, which later scans read, can be loaded only now. If they are
		// refused, scans go by sock_diag, as they would have before.
		_, _ = tracker.TakeSnapshot(ctx, tracker.SnapshotConfig{
			Source: tracker.SourceEBPF, Query: fallback.Query{Kind: conn.KindTCP4},
		})
	}
	for i := range data {
		data[i].Permitted &= uint32(kept >> (32 * i))
		data[i].Effective &= data[i].Permitted
		data[i].Inheritable = 0
	}
	for _, call := range []struct {
		name           string
		number, a1, a2 uintptr
	}{
		{"PR_SET_NO_NEW_PRIVS", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1},
		{"PR_CAP_AMBIENT", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL},
		{"capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0]))},
	} {
		if _, _, errno := syscall.AllThreadsSyscall(call.number, call.a1, call.a2, 0); errno != 0 {
			return fmt.Errorf("%s: %w", call.name, errno)
		}
	}
	return nil
}

// dropsPrivileges reports whether all threads can be reached: with cgo, there may be
// some that the Go runtime does not know.
func dropsPrivileges() bool {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0)
	return errno == 0
}
