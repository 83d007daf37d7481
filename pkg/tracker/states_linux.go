package tracker

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// stateWords are the states of sockets on their way to an end, which the kernel
// side notes by cookie (map states in bpf/maps.h). The zero stateWords knows none.
type stateWords struct {
	words []uint64 // a power of two
	raw   []byte
}

func mapStates(m *ebpf.Map) (stateWords, error) {
	n := int(m.MaxEntries())
	raw, err := unix.Mmap(m.FD(), 0, 8*n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return stateWords{}, fmt.Errorf("map the states of sockets: %w", err)
	}
	return stateWords{unsafe.Slice((*uint64)(unsafe.Pointer(&raw[0])), n), raw}, nil
}

func (s stateWords) close() error {
	if s.raw == nil {
		return nil
	}
	return unix.Munmap(s.raw)
}

// of returns the state that is noted of a socket, and whether it is an orphan:
// one that no process holds any more.
func (s stateWords) of(cookie uint64) (status conn.Status, orphan, ok bool) {
	if len(s.words) == 0 {
		return 0, false, false
	}
	const mark = 1 << 51 // STATE_MARK in bpf/maps.h
	w := atomic.LoadUint64(&s.words[cookie&uint64(len(s.words)-1)])
	if w>>5 != cookie|mark {
		return 0, false, false
	}
	return conn.Status(w & 15), w&16 != 0, true
}
