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
	wireOwned  = bpf.TrackerOwnedEvent
	wireClose  = bpf.TrackerCloseEvent
	wireTask   = bpf.TrackerTaskEvent
)

// A record is one that has been checked for its length. Its type says what is set
// beside header; what is set includes what is above it.
type record struct {
	header  *wireHeader
	socket  *wireSocket
	owned   *wireOwned
	closing *wireClose
	task    *wireTask
}

// recordSizes are the sizes of records by type; 0 is no type.
var recordSizes = [...]uintptr{
	bpf.TrackerEventTypeEVENT_LISTEN:       unsafe.Sizeof(wireOwned{}),
	bpf.TrackerEventTypeEVENT_CONNECT:      unsafe.Sizeof(wireOwned{}),
	bpf.TrackerEventTypeEVENT_CHILD:        unsafe.Sizeof(wireSocket{}),
	bpf.TrackerEventTypeEVENT_ACCEPT:       unsafe.Sizeof(wireOwned{}),
	bpf.TrackerEventTypeEVENT_MAYBE_ACCEPT: unsafe.Sizeof(wireOwned{}),
	bpf.TrackerEventTypeEVENT_FAIL:         unsafe.Sizeof(wireOwned{}),
	bpf.TrackerEventTypeEVENT_FAIL_CALL:    unsafe.Sizeof(wireOwned{}),
	bpf.TrackerEventTypeEVENT_STATE:        unsafe.Sizeof(wireOwned{}),
	bpf.TrackerEventTypeEVENT_CLOSE:        unsafe.Sizeof(wireClose{}),
	bpf.TrackerEventTypeEVENT_FORK:         unsafe.Sizeof(wireTask{}),
	bpf.TrackerEventTypeEVENT_EXEC:         unsafe.Sizeof(wireTask{}),
	bpf.TrackerEventTypeEVENT_EXIT:         unsafe.Sizeof(wireTask{}),
}

// decode checks a record of the ring buffer. What it returns points into raw,
// which must be aligned to 8 bytes.
func decode(raw []byte) (r record, err error) {
	if len(raw) < int(unsafe.Sizeof(wireHeader{})) {
		return r, fmt.Errorf("ring buffer: record of %d bytes is too short for a header", len(raw))
	}
	p := unsafe.Pointer(unsafe.SliceData(raw))
	r.header = (*wireHeader)(p)
	if int(r.header.Type) >= len(recordSizes) || recordSizes[r.header.Type] == 0 {
		return r, fmt.Errorf("ring buffer: record of unknown type %d", r.header.Type)
	}
	if size := recordSizes[r.header.Type]; uintptr(len(raw)) != size {
		return r, fmt.Errorf("ring buffer: record of type %d has %d bytes, not %d", r.header.Type, len(raw), size)
	}
	switch bpf.TrackerEventType(r.header.Type) {
	case bpf.TrackerEventTypeEVENT_FORK, bpf.TrackerEventTypeEVENT_EXEC, bpf.TrackerEventTypeEVENT_EXIT:
		r.task = (*wireTask)(p)
	case bpf.TrackerEventTypeEVENT_CHILD:
		r.socket = (*wireSocket)(p)
	case bpf.TrackerEventTypeEVENT_CLOSE:
		r.closing = (*wireClose)(p)
		fallthrough
	default:
		r.owned = (*wireOwned)(p)
		r.socket = (*wireSocket)(p)
	}
	return r, nil
}

// fillSocket makes c the socket of s, without a holder.
func fillSocket(c *conn.Conn, s *wireSocket) {
	*c = conn.Conn{
		FD:     -1,
		Family: conn.Family(s.Header.Family),
		Type:   conn.Stream,
		Status: conn.Status(s.Header.Newstate),
		Known:  conn.KnownUID | conn.KnownNetNS,
		UID:    s.Uid,
		NetNS:  s.Header.Netns,
		Cookie: s.Header.Cookie,
	}
	if c.Cookie != 0 { // a socket that fails to connect may have none
		c.Known |= conn.KnownCookie
	}
	if c.Family == conn.Inet {
		c.Laddr = conn.AddrIPv4([4]byte(s.Laddr[:4]), s.Lport)
		c.Raddr = conn.AddrIPv4([4]byte(s.Raddr[:4]), s.Rport)
	} else {
		c.Family = conn.Inet6
		c.Laddr = conn.AddrIPv6(s.Laddr, s.Lport)
		c.Raddr = conn.AddrIPv6(s.Raddr, s.Rport)
	}
}

// fillOwned makes c the socket of o, held by owner, nil if it is unknown.
func fillOwned(c *conn.Conn, o *wireOwned, owner *conn.Process) {
	fillSocket(c, &o.Socket)
	// 0 means that there is none yet, as in inet_csk_accept(), or none any more.
	if c.Inode = o.Inode; o.Inode != 0 {
		c.Known |= conn.KnownInode
	}
	if owner != nil {
		c.FD, c.PID, c.Process = o.Fd, owner.PID, owner
	}
}
