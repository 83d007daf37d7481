// Package ringbuf reads a BPF_MAP_TYPE_RINGBUF in place: records are handed out
// where the kernel wrote them, without a copy, and a reader that must be up to
// date can drain the buffer while another one waits for it to fill.
package ringbuf

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The header of a record and its flags: include/uapi/linux/bpf.h.
const (
	headerSize = 8
	busyBit    = 1 << 31
	discardBit = 1 << 30
)

// A Reader is the one consumer of a ring buffer. Drain must not run twice at the
// same time; Wait and Close may run beside it.
type Reader struct {
	consumer []byte // one page that we write: how far we have read
	producer []byte // one page that the kernel writes, then the data, twice in a row
	mask     uint64
	epoll    int
	wake     int // eventfd that ends Wait
	mapFD    int
}

// New maps the ring buffer m. The reader uses m's descriptor until it is closed.
func New(m *ebpf.Map) (*Reader, error) {
	if m.Type() != ebpf.RingBuf {
		return nil, fmt.Errorf("ringbuf: map is a %s", m.Type())
	}
	page, size := os.Getpagesize(), int(m.MaxEntries())
	r := &Reader{mask: uint64(size) - 1, epoll: -1, wake: -1, mapFD: m.FD()}
	fail := func(what string, err error) (*Reader, error) {
		r.Close()
		return nil, fmt.Errorf("ringbuf: %s: %w", what, err)
	}

	var err error
	if r.consumer, err = unix.Mmap(r.mapFD, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fail("map consumer page", err)
	}
	// The data follows the producer's page twice, so that a record which wraps around is whole.
	if r.producer, err = unix.Mmap(r.mapFD, int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return fail("map data", err)
	}
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fail("epoll_create1", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fail("eventfd", err)
	}
	for _, fd := range []int{r.mapFD, r.wake} {
		if err := unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return fail("epoll_ctl", err)
		}
	}
	return r, nil
}

// Wait blocks until there are records, or for timeout milliseconds (-1: forever).
// It returns os.ErrClosed once Interrupt was called.
func (r *Reader) Wait(timeout int) error {
	var events [2]unix.EpollEvent
	n, err := unix.EpollWait(r.epoll, events[:], timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("ringbuf: epoll_wait: %w", err)
	}
	for _, e := range events[:max(n, 0)] {
		if int(e.Fd) == r.wake {
			return os.ErrClosed
		}
	}
	return nil
}

// Interrupt makes this and every later Wait return os.ErrClosed.
func (r *Reader) Interrupt() {
	one := [8]byte{1}
	unix.Write(r.wake, one[:]) // fails only when it has been called 2^64 times
}

// Drain calls f with every record that is complete, oldest first, until there is
// none left, and returns how many there were. The record is f's only until f
// returns, and f must not modify it.
//
// The kernel wakes Wait when a record is committed to a buffer that is otherwise
// drained. What is committed meanwhile costs no wake-up.
func (r *Reader) Drain(f func(record []byte)) int {
	consumed := (*uint64)(unsafe.Pointer(unsafe.SliceData(r.consumer)))
	produced := (*uint64)(unsafe.Pointer(unsafe.SliceData(r.producer)))
	data := r.producer[len(r.consumer):]

	n := 0
	pos := atomic.LoadUint64(consumed)
	for pos < atomic.LoadUint64(produced) {
		start := pos & r.mask
		header := atomic.LoadUint32((*uint32)(unsafe.Pointer(&data[start])))
		if header&busyBit != 0 {
			break // reserved, not committed yet
		}
		size := uint64(header &^ discardBit)
		if header&discardBit == 0 {
			record := data[start+headerSize:][:size:size]
			f(record)
			n++
		}
		pos += (headerSize + size + 7) &^ 7
		atomic.StoreUint64(consumed, pos)
	}
	return n
}

// Used returns how many bytes wait to be read.
func (r *Reader) Used() int {
	consumed := (*uint64)(unsafe.Pointer(unsafe.SliceData(r.consumer)))
	produced := (*uint64)(unsafe.Pointer(unsafe.SliceData(r.producer)))
	return int(atomic.LoadUint64(produced) - atomic.LoadUint64(consumed))
}

// Close unmaps the buffer. Neither Drain nor Wait may be running.
func (r *Reader) Close() error {
	var errs []error
	for _, m := range [][]byte{r.consumer, r.producer} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	for _, fd := range []int{r.epoll, r.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
