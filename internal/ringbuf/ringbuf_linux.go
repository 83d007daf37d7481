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

// windowSize is how much of the data is mapped at a time. The kernel gives a mapping
// all of its pages at once, and they count as resident: a whole buffer, which it maps
// twice, would make the process look larger than all the rest of it.
const windowSize = 1 << 20

// A Reader is the one consumer of a ring buffer. Drain must not run twice at the
// same time; Wait and Used may run beside it.
type Reader struct {
	consumer []byte // a page that we write: how far we have read
	producer []byte // a page that the kernel writes: how far it has written
	size     uint64 // of the data, a power of two
	window   []byte // the part of the data that is mapped
	offset   uint64 // where it begins
	remap    func(old []byte, offset uint64, length int) ([]byte, error)
	epoll    int
	wake     int // eventfd that ends Wait
}

// New maps the ring buffer m. The reader uses m's descriptor until it is closed.
func New(m *ebpf.Map) (*Reader, error) {
	if m.Type() != ebpf.RingBuf {
		return nil, fmt.Errorf("ringbuf: map is a %s", m.Type())
	}
	page, fd := os.Getpagesize(), m.FD()
	r := &Reader{size: uint64(m.MaxEntries()), epoll: -1, wake: -1}
	r.remap = func(old []byte, offset uint64, length int) ([]byte, error) {
		if old != nil {
			if err := unix.Munmap(old); err != nil {
				return nil, err
			}
		}
		return unix.Mmap(fd, int64(2*page)+int64(offset), length, unix.PROT_READ, unix.MAP_SHARED)
	}
	fail := func(what string, err error) (*Reader, error) {
		r.Close()
		return nil, fmt.Errorf("ringbuf: %s: %w", what, err)
	}

	var err error
	if r.consumer, err = unix.Mmap(fd, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fail("map consumer page", err)
	}
	if r.producer, err = unix.Mmap(fd, int64(page), page, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return fail("map producer page", err)
	}
	if err = r.move(0); err != nil {
		return fail("map data", err)
	}
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fail("epoll_create1", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fail("eventfd", err)
	}
	for _, fd := range []int{fd, r.wake} {
		if err := unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return fail("epoll_ctl", err)
		}
	}
	return r, nil
}

// move moves the window so that it begins with the page that holds offset. The
// kernel has the data twice in a row, so that what wraps around is whole.
func (r *Reader) move(offset uint64) error {
	offset &^= uint64(os.Getpagesize()) - 1
	window, err := r.remap(r.window, offset, int(min(windowSize, 2*r.size-offset)))
	r.window, r.offset = window, offset
	return err
}

// at returns length bytes of the data at offset.
func (r *Reader) at(offset uint64, length uint64) ([]byte, error) {
	if offset < r.offset || offset+length > r.offset+uint64(len(r.window)) {
		if err := r.move(offset); err != nil {
			return nil, fmt.Errorf("ringbuf: map data: %w", err)
		}
		if offset+length > r.offset+uint64(len(r.window)) {
			return nil, fmt.Errorf("ringbuf: record of %d bytes is too long", length)
		}
	}
	return r.window[offset-r.offset:][:length:length], nil
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
func (r *Reader) Drain(f func(record []byte)) (n int, err error) {
	consumed, produced := position(r.consumer), position(r.producer)
	pos := atomic.LoadUint64(consumed)
	for pos < atomic.LoadUint64(produced) {
		offset := pos & (r.size - 1)
		raw, err := r.at(offset, headerSize)
		if err != nil {
			return n, err
		}
		header := atomic.LoadUint32((*uint32)(unsafe.Pointer(&raw[0])))
		if header&busyBit != 0 {
			break // reserved, not committed yet
		}
		length := uint64(header &^ discardBit)
		if header&discardBit == 0 {
			record, err := r.at(offset+headerSize, length)
			if err != nil {
				return n, err
			}
			f(record)
			n++
		}
		pos += (headerSize + length + 7) &^ 7
		atomic.StoreUint64(consumed, pos)
	}
	return n, nil
}

// Used returns how many bytes wait to be read.
func (r *Reader) Used() int {
	return int(atomic.LoadUint64(position(r.producer)) - atomic.LoadUint64(position(r.consumer)))
}

// position returns the counter of bytes at the start of a page.
func position(page []byte) *uint64 { return (*uint64)(unsafe.Pointer(unsafe.SliceData(page))) }

// Close unmaps the buffer. Neither Drain, Used nor Wait may be running.
func (r *Reader) Close() error {
	var errs []error
	for _, m := range [][]byte{r.consumer, r.producer, r.window} {
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
