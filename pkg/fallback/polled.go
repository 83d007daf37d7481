package fallback

import "github.com/conntrace/conntrace/pkg/conn"

// A polled is a socket in a poller's memory. Its Conn keeps the last owner that
// was known.
type polled struct {
	conn.Conn
	inode     uint64 // as the table has it: 0 once the socket is an orphan
	look      uint32 // that saw it last
	phase     phase
	direction conn.Direction
	announced bool  // an event has told that it exists
	over      bool  // an event has told of its end
	removed   bool  // from the poller's memory
	touched   bool  // is in poller.touched
	unsettled bool  // something is to come that no counter shows
	counted   bool  // in poller.opened
	tries     uint8 // of finding its process
	missing   uint8 // looks that did not see it
}

// A phase is a part of a socket's life, as far as events go.
type phase uint8

const (
	listening phase = iota
	opening         // not a connection yet
	connected       // established or closing
	ended
)

// ownerTries is how often the process of a socket is searched for: it may be on its
// way to another.
const ownerTries = 2

// A socketKey tells a socket from others that exist at the same moment: by its
// cookie, or where that is unknown by its addresses.
type socketKey struct {
	where        uint64 // network namespace and family
	id           uint64 // cookie; or the inode of a listener, as SO_REUSEPORT lets many have an address
	ports        uint64
	laddr, raddr [16]byte
}

// same reports whether c, which has the key of s, can be the same socket. The inode
// of one changes from and to 0 as it is accepted and as it is orphaned.
func (s *polled) same(c *conn.Conn) bool {
	if s.Known.Has(conn.KnownCookie) {
		return true // it is the key
	}
	if s.phase == ended && phaseOf(c.Status) != ended {
		return false
	}
	return s.inode == c.Inode || s.inode == 0 || c.Inode == 0
}

// update takes over what c says of s. What was known of its owner stays if c knows
// none: an orphan has no inode.
func (s *polled) update(c *conn.Conn) {
	s.inode = c.Inode
	s.phase = phaseOf(c.Status)
	if s.Inode != 0 && c.Inode == 0 || s.PID != 0 && c.PID == 0 {
		s.Status = c.Status
		return
	}
	s.Conn = *c
}

// wantsOwner reports whether the process of s is still to be found.
func (s *polled) wantsOwner() bool {
	return s.inode != 0 && s.PID == 0 && s.tries < ownerTries && s.phase != ended
}

// accepted reports whether s is a connection that a process has got.
func (s *polled) accepted() bool {
	return s.phase == connected && (s.Inode != 0 || !s.Known.Has(conn.KnownInode))
}

func phaseOf(status conn.Status) phase {
	switch status {
	case conn.StatusListen:
		return listening
	case conn.StatusSynSent, conn.StatusSynRecv:
		return opening
	case conn.StatusTimeWait, conn.StatusClose, conn.StatusDeleteTCB:
		return ended
	}
	return connected
}

func keyOf(c *conn.Conn) socketKey {
	if c.Known.Has(conn.KnownCookie) {
		return socketKey{where: whereOf(c), id: c.Cookie}
	}
	key := tupleOf(c)
	if c.Status == conn.StatusListen {
		key.id = c.Inode
	}
	return key
}

// tupleOf returns the key of a socket with the addresses of c.
func tupleOf(c *conn.Conn) socketKey {
	return socketKey{
		where: whereOf(c), ports: uint64(c.Laddr.Port())<<16 | uint64(c.Raddr.Port()),
		laddr: bytesOf(c.Laddr), raddr: bytesOf(c.Raddr),
	}
}

func whereOf(c *conn.Conn) uint64 { return uint64(c.NetNS)<<16 | uint64(c.Family) }

func bytesOf(a conn.Addr) (ip [16]byte) {
	if addr := a.IP(); addr.IsValid() {
		ip = addr.As16()
	}
	return ip
}
