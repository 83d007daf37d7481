package tracker_test

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestUring: a connection that is accepted through io_uring has its owner, although
// no system call returns it.
func TestUring(t *testing.T) {
	tr := open(t, tracker.Config{})
	if limited(tr, "io_uring") {
		t.Skip("these hooks do not see it, and say so")
	}
	for _, tt := range []struct {
		name      string
		multishot bool
	}{{"once", false}, {"multishot", true}} {
		t.Run(tt.name, func(t *testing.T) {
			ring := newUring(t)
			l, err := listen("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			s := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: []uint16{port(l.Addr())}, Direction: conn.Inbound})
			ring.accept(t, int(fdOf(t, l.(*net.TCPListener))), tt.multishot)
			c, err := net.Dial("tcp4", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fd := ring.result(t)
			if fd == -int(unix.EINVAL) && tt.multishot {
				t.Skip("this kernel's io_uring has no multishot accept (5.19)")
			}
			if fd < 0 {
				t.Fatal("accept:", syscall.Errno(-fd))
			}
			e := s.event(conn.EventAccept)
			if e.PID != int32(os.Getpid()) || e.FD != acceptedFD(tr, int32(fd)) || e.Raddr != addr(c.LocalAddr()) {
				t.Errorf("%s, want pid %d, fd %d", describe(&e), os.Getpid(), fd)
			}
			unix.Close(fd)
			if e := s.event(conn.EventClose); e.PID != int32(os.Getpid()) {
				t.Errorf("%s, want pid %d", describe(&e), os.Getpid())
			}
		})
	}
}

// A uring is an io_uring of a few entries (io_uring_setup(2)).
type uring struct {
	fd          int
	rings, sqes []byte
	params      uringParams
}

type uringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

func newUring(t *testing.T) *uring {
	t.Helper()
	u := new(uring)
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&u.params)), 0)
	if errors.Is(errno, unix.ENOSYS) || errors.Is(errno, unix.EPERM) {
		t.Skip("io_uring_setup:", errno) // kernel.io_uring_disabled
	}
	if errno != 0 {
		t.Fatal("io_uring_setup:", errno)
	}
	u.fd = int(fd)
	t.Cleanup(func() { unix.Close(u.fd) })
	var err error
	if u.rings, err = unix.Mmap(u.fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil { // IORING_FEAT_SINGLE_MMAP, from 5.4
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(u.rings) })
	if u.sqes, err = unix.Mmap(u.fd, 0x10000000, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(u.sqes) })
	return u
}

func (u *uring) word(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&u.rings[offset])) }

// accept submits an accept of the listener, or of all that come.
func (u *uring) accept(t *testing.T, listener int, multishot bool) {
	t.Helper()
	const opAccept, acceptMultishot = 13, 1
	u.sqes[0] = opAccept
	*(*int32)(unsafe.Pointer(&u.sqes[4])) = int32(listener)
	if multishot {
		*(*uint16)(unsafe.Pointer(&u.sqes[2])) = acceptMultishot // ioprio
	}
	*u.word(u.params.sq.array) = 0
	*u.word(u.params.sq.tail)++
	u.enter(t, 1, 0)
}

// result waits for a completion and returns its result.
func (u *uring) result(t *testing.T) int {
	t.Helper()
	u.enter(t, 0, 1)
	if *u.word(u.params.cq.head) == *u.word(u.params.cq.tail) {
		t.Fatal("no completion")
	}
	result := int32(*u.word(u.params.cq.cqes + 8))
	*u.word(u.params.cq.head)++
	return int(result)
}

func (u *uring) enter(t *testing.T, submit, wait uintptr) {
	t.Helper()
	const getEvents = 1
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), submit, wait, getEvents, 0, 0)
		if errno == 0 {
			return
		}
		if errno != unix.EINTR {
			t.Fatal("io_uring_enter:", errno)
		}
	}
}
