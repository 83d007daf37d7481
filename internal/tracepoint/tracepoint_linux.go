package tracepoint

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/mount"
)

// A Tracepoint is a program at a tracepoint, until it is closed.
type Tracepoint struct{ event int }

// Attach runs program, of type BPF_PROG_TYPE_TRACEPOINT, whenever the tracepoint
// group/name fires in any task on any CPU.
func Attach(group, name string, program *ebpf.Program) (*Tracepoint, error) {
	id, err := identify(group, name)
	if err != nil {
		return nil, fmt.Errorf("tracepoint %s/%s: %w", group, name, err)
	}
	// The event is bound to CPU 0, but a program attached to it belongs to the
	// tracepoint and runs on all of them (perf_event_attach_bpf_prog()).
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_TRACEPOINT,
		Size:   uint32(unix.PERF_ATTR_SIZE_VER1),
		Config: id,
	}
	event, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("perf_event_open: %w", err)
	}
	t := &Tracepoint{event}
	if err := unix.IoctlSetInt(event, unix.PERF_EVENT_IOC_SET_BPF, program.FD()); err != nil {
		t.Close()
		return nil, fmt.Errorf("PERF_EVENT_IOC_SET_BPF: %w", err)
	}
	if err := unix.IoctlSetInt(event, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
		t.Close()
		return nil, fmt.Errorf("PERF_EVENT_IOC_ENABLE: %w", err)
	}
	return t, nil
}

// Close detaches the program.
func (t *Tracepoint) Close() error { return unix.Close(t.event) }

// mounts are where tracefs is found, as a rule.
var mounts = []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"}

// identify returns the kernel's number for a tracepoint, from tracefs.
func identify(group, name string) (uint64, error) {
	path := filepath.Join("events", group, name, "id")
	var text []byte
	err := os.ErrNotExist
	for _, m := range mounts {
		if text, err = os.ReadFile(filepath.Join(m, path)); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		text, err = readDetached(path)
	} else if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
}

// readDetached reads a file of tracefs through a mount that is in no directory, so
// that the system stays as it was.
func readDetached(path string) ([]byte, error) {
	root, err := mount.Detached("tracefs")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMounted, err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "openat", Path: "tracefs:" + path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return io.ReadAll(f)
}
