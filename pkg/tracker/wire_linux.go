package tracker

import (
	"fmt"
	"unsafe"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/pkg/conn"
)

// The records of the ring buffer: bpf/event.h. The Go types are generated from
// the C ones, so that a record is read where it lies.
type (
	wireHeader = bpf.TrackerHeader
	wireSocket = bpf.TrackerSocketEvent
	wireClose  = bpf.TrackerCloseEvent
)

// A record is one that has been checked for its length: socket is set for every
// type but EVENT_STATE, and closing for EVENT_CLOSE.
type record struct {
	header  *wireHeader
	socket  *wireSocket
	closing *wireClose
}

// decode checks a record of the ring buffer. What it returns points into raw,
// which must be aligned to 8 bytes.
func decode(raw []byte) (r record, err error) {
	if len(raw) < int(unsafe.Sizeof(wireHeader{})) {
		return r, fmt.Errorf("ring buffer: record of %d bytes is too short for a header", len(raw))
	}
	p := unsafe.Pointer(unsafe.SliceData(raw))
	header := (*wireHeader)(p)
	var size uintptr
	switch bpf.TrackerEventType(header.Type) {
	case bpf.TrackerEventTypeEVENT_STATE:
		size = unsafe.Sizeof(wireHeader{})
	case bpf.TrackerEventTypeEVENT_CLOSE:
		size = unsafe.Sizeof(wireClose{})
	case bpf.TrackerEventTypeEVENT_LISTEN, bpf.TrackerEventTypeEVENT_CONNECT, bpf.TrackerEventTypeEVENT_CHILD,
		bpf.TrackerEventTypeEVENT_ACCEPT, bpf.TrackerEventTypeEVENT_FAIL:
		size = unsafe.Sizeof(wireSocket{})
	default:
		return r, fmt.Errorf("ring buffer: record of unknown type %d", header.Type)
	}
	if uintptr(len(raw)) != size {
		return r, fmt.Errorf("ring buffer: record of type %d has %d bytes, not %d", header.Type, len(raw), size)
	}
	r.header = header
	if size >= unsafe.Sizeof(wireSocket{}) {
		r.socket = (*wireSocket)(p)
	}
	if size >= unsafe.Sizeof(wireClose{}) {
		r.closing = (*wireClose)(p)
	}
	return r, nil
}

// row returns the socket of a record as a row without a holder.
func (r record) row() conn.Conn {
	s := r.socket
	c := conn.Conn{
		FD:     s.Fd,
		Type:   conn.Stream,
		Status: conn.Status(r.header.Newstate),
		Known:  conn.KnownUID | conn.KnownNetNS,
		UID:    s.Uid,
		NetNS:  r.header.Netns,
		Inode:  s.Inode,
		Cookie: r.header.Cookie,
	}
	if c.Cookie != 0 { // a child that was accepted before it was established has none
		c.Known |= conn.KnownCookie
	}
	// A child has no inode before it is accepted. Anywhere else 0 means that there is none
	// yet, as in inet_csk_accept(), or no more.
	if s.Inode != 0 || bpf.TrackerEventType(r.header.Type) == bpf.TrackerEventTypeEVENT_CHILD {
		c.Known |= conn.KnownInode
	}
	if conn.Family(r.header.Family) == conn.Inet {
		c.Family = conn.Inet
		c.Laddr = conn.AddrIPv4([4]byte(s.Laddr[:4]), s.Lport)
		c.Raddr = conn.AddrIPv4([4]byte(s.Raddr[:4]), s.Rport)
	} else {
		c.Family = conn.Inet6
		c.Laddr = conn.AddrIPv6(s.Laddr, s.Lport)
		c.Raddr = conn.AddrIPv6(s.Raddr, s.Rport)
	}
	return c
}
