package fallback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/conntrace/conntrace/pkg/conn"
)

// What the kernel answers to sock_diag(7) requests, in its own byte order. The
// numbers are those of include/uapi/linux: netlink.h, inet_diag.h, unix_diag.h.
const (
	sizeofNlmsghdr    = 16
	sizeofNlattr      = 4
	sizeofInetDiagMsg = 72
	sizeofUnixDiagMsg = 16

	linuxInet  = 2  // AF_INET
	linuxInet6 = 10 // AF_INET6

	nlmsgError       = 2
	nlmsgDone        = 3
	sockDiagByFamily = 20
	nlmFDumpIntr     = 0x10

	attrInetInfo  = 2 // INET_DIAG_INFO
	attrUnixName  = 0 // UNIX_DIAG_NAME
	attrUnixQueue = 4 // UNIX_DIAG_RQLEN
	attrUnixUID   = 7 // UNIX_DIAG_UID
	attrTypeMask  = 0x3fff

	timerTimeWait = 3 // idiag_timer, and "tr" in /proc/net/tcp: a socket of TIME_WAIT (struct inet_timewait_sock)

	tcpListen     = 10
	tcpNewSynRecv = 12
)

var (
	hostEndian = binary.NativeEndian
	errShort   = errors.New("record is cut short")
)

// A message is a netlink message; body is what follows its header.
type message struct {
	kind  uint16
	flags uint16
	seq   uint32
	body  []byte
}

// nextMessage splits the first message off b.
func nextMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < sizeofNlmsghdr {
		return message{}, nil, errShort
	}
	size := uint64(hostEndian.Uint32(b))
	if size < sizeofNlmsghdr || size > uint64(len(b)) {
		return message{}, nil, errShort
	}
	m = message{
		kind:  hostEndian.Uint16(b[4:]),
		flags: hostEndian.Uint16(b[6:]),
		seq:   hostEndian.Uint32(b[8:]),
		body:  b[sizeofNlmsghdr:size],
	}
	return m, b[min(align(size), uint64(len(b))):], nil
}

// nextAttr splits the first attribute off b.
func nextAttr(b []byte) (kind uint16, value, rest []byte, err error) {
	if len(b) < sizeofNlattr {
		return 0, nil, nil, errShort
	}
	size := uint64(hostEndian.Uint16(b))
	if size < sizeofNlattr || size > uint64(len(b)) {
		return 0, nil, nil, errShort
	}
	return hostEndian.Uint16(b[2:]) & attrTypeMask, b[sizeofNlattr:size], b[min(align(size), uint64(len(b))):], nil
}

// align rounds up as NLMSG_ALIGN and NLA_ALIGN do.
func align(n uint64) uint64 { return (n + 3) &^ 3 }

// A dump is an answer while it is being read.
type dump struct {
	seq    uint32       // of the request
	record func([]byte) // gets each record
	torn   bool         // the table changed meanwhile: the answer may lack sockets, or have some twice
}

// add reads the next datagram. It reports whether that was the last one.
func (d *dump) add(b []byte) (done bool, err error) {
	for len(b) > 0 {
		var m message
		if m, b, err = nextMessage(b); err != nil {
			return false, err
		}
		if m.seq != d.seq {
			continue
		}
		d.torn = d.torn || m.flags&nlmFDumpIntr != 0
		switch m.kind {
		case sockDiagByFamily:
			d.record(m.body)
		case nlmsgDone, nlmsgError: // a dump that fails half way has its error in NLMSG_DONE
			if len(m.body) < 4 {
				return false, errShort
			}
			if errno := int32(hostEndian.Uint32(m.body)); errno != 0 {
				return false, syscall.Errno(-errno)
			}
			return true, nil
		}
	}
	return false, nil
}

// decodeInetDiag fills c from a struct inet_diag_msg. Its attributes are not
// wanted. c.Type is the caller's to set, as it tells TCP from UDP.
func decodeInetDiag(b []byte, c *conn.Conn) error {
	if len(b) < sizeofInetDiagMsg {
		return errShort
	}
	// The ports and addresses of struct inet_diag_sockid are in network byte order.
	sport, dport := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	src, dst := b[8:24], b[24:40]
	switch family := b[0]; family {
	case linuxInet:
		c.Family = conn.Inet
		c.Laddr = conn.AddrIPv4([4]byte(src), sport)
		c.Raddr = conn.AddrIPv4([4]byte(dst), dport)
	case linuxInet6:
		c.Family = conn.Inet6
		c.Laddr = conn.AddrIPv6([16]byte(src), sport)
		c.Raddr = conn.AddrIPv6([16]byte(dst), dport)
	default:
		return fmt.Errorf("unknown address family %d", family)
	}
	if c.Type == conn.Stream {
		status, err := statusOf(b[1])
		if err != nil {
			return err
		}
		c.Status = status
	}
	c.Cookie = cookieOf(b[44:])
	c.Inode = uint64(hostEndian.Uint32(b[68:]))
	c.Known = conn.KnownCookie | conn.KnownInode
	setUID(c, hostEndian.Uint32(b[64:]))
	return nil
}

// statusOf returns the status for a TCP state of the kernel.
func statusOf(state uint8) (conn.Status, error) {
	switch {
	case state == tcpNewSynRecv:
		return conn.StatusSynRecv, nil
	case state == 0 || state > uint8(conn.StatusClosing):
		return 0, fmt.Errorf("unknown TCP state %d", state)
	}
	return conn.Status(state), nil
}

// setUID sets the UID of a socket whose inode is known. Without an inode there is
// no owner of it: TIME_WAIT, requests, orphans and what nobody has accepted yet
// are said to be root's, which means nothing.
func setUID(c *conn.Conn, uid uint32) {
	if c.Inode != 0 {
		c.UID = uid
		c.Known |= conn.KnownUID
	}
}

// decodeUnixDiag fills c from a struct unix_diag_msg and its attributes. pending
// is the number of connections that wait for a listener to accept them.
func decodeUnixDiag(b []byte, c *conn.Conn) (pending uint32, err error) {
	if len(b) < sizeofUnixDiagMsg {
		return 0, errShort
	}
	c.Family = conn.Unix
	c.Type = conn.Type(b[1])
	listens := b[2] == tcpListen
	c.Inode = uint64(hostEndian.Uint32(b[4:]))
	c.Cookie = cookieOf(b[8:])
	c.Known = conn.KnownCookie | conn.KnownInode

	var name []byte
	for attrs := b[sizeofUnixDiagMsg:]; len(attrs) > 0; {
		var kind uint16
		var value []byte
		if kind, value, attrs, err = nextAttr(attrs); err != nil {
			return 0, err
		}
		switch kind {
		case attrUnixName:
			name = value
		case attrUnixQueue: // struct unix_diag_rqlen
			if len(value) < 8 {
				return 0, errShort
			}
			if listens {
				pending = hostEndian.Uint32(value)
			}
		case attrUnixUID:
			if len(value) < 4 {
				return 0, errShort
			}
			setUID(c, hostEndian.Uint32(value))
		}
	}
	c.Laddr, c.Raddr = conn.AddrSunPath(name), conn.AddrUnix("")
	return pending, nil
}

// cookieOf reads the two 32-bit halves of a cookie, low half first
// (sock_diag_save_cookie).
func cookieOf(b []byte) uint64 {
	return uint64(hostEndian.Uint32(b)) | uint64(hostEndian.Uint32(b[4:]))<<32
}
