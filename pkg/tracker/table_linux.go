package tracker

import (
	"cmp"
	"slices"
	"syscall"
	"time"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// A table holds the TCP sockets of the machine, of every network namespace. The
// kernel's events keep it current (apply); scans of the kernel's own tables add
// what was there before and what no event tells (merge). It is not safe for
// concurrent use.
//
// A scan takes a while, and events go on meanwhile. Both are joined by the
// socket's cookie: from beginScan on, the table keeps note of what the scan may
// have seen too late or too early.
type table struct {
	sockets map[uint64]*socket // by cookie
	free    []*socket          // entries to use again

	// What the last scan saw of sockets that come and go without events (isTransient).
	transient []conn.Conn

	// The inbound connections that were closed last of those that nobody had accepted,
	// a ring. An accept may still come: see EVENT_ACCEPT.
	unaccepted     [256]uint64
	nextUnaccepted int

	clock    uint64                 // counts events
	scanning bool                   // between beginScan and merge
	closed   map[uint64]bool        // sockets that were closed while scanning
	early    map[uint64]conn.Status // states of sockets that are not in the table yet
}

// A socket is one entry of the table.
type socket struct {
	row         conn.Conn     // as Connections shows it: PID and FD are those of a holder
	owner       *conn.Process // who listened, connected or accepted; nil: unknown
	ownerFD     int32         // the descriptor that it got by that; -1: unknown
	direction   conn.Direction
	established uint64 // CLOCK_MONOTONIC, ns; 0: unknown
	changed     uint64 // table.clock at the last event
}

func newTable() *table {
	return &table{
		sockets: make(map[uint64]*socket),
		closed:  make(map[uint64]bool),
		early:   make(map[uint64]conn.Status),
	}
}

// apply brings a record of the ring buffer into the table. It returns true if e,
// which it fills, is to be published. owner is the record's owner, nil if it has none.
func (t *table) apply(r record, owner *conn.Process, at time.Time, e *conn.Event) bool {
	t.clock++
	cookie := r.header.Cookie
	s := t.sockets[cookie]

	switch bpf.TrackerEventType(r.header.Type) {
	case bpf.TrackerEventTypeEVENT_STATE:
		if s != nil {
			s.row.Status = conn.Status(r.header.Newstate)
			s.changed = t.clock
		} else if t.scanning {
			t.early[cookie] = conn.Status(r.header.Newstate)
		}
		return false

	case bpf.TrackerEventTypeEVENT_LISTEN:
		s = t.put(r, owner)
		s.fill(e, conn.EventListen, at)
		return true

	case bpf.TrackerEventTypeEVENT_CONNECT:
		s = t.put(r, owner)
		s.direction = conn.Outbound
		s.established = r.header.Time
		s.fill(e, conn.EventConnect, at)
		return true

	case bpf.TrackerEventTypeEVENT_CHILD:
		if s == nil { // else it was accepted before it was established (tcp_check_req)
			s = t.put(r, nil)
			s.direction = conn.Inbound
		}
		s.row.Status = conn.StatusEstablished
		s.established, s.changed = r.header.Time, t.clock
		return false

	case bpf.TrackerEventTypeEVENT_ACCEPT:
		established, known := uint64(0), s != nil
		if known {
			established = s.established
		}
		s = t.put(r, owner)
		s.direction = conn.Inbound
		s.established = established
		if !known && slices.Contains(t.unaccepted[:], cookie) {
			s.row.Status = conn.StatusClose // which is set after the close is told (tcp_set_state())
		}
		s.fill(e, conn.EventAccept, at)
		if s.row.Status == conn.StatusClose { // it ended before it was accepted
			t.remove(cookie)
		}
		return true

	case bpf.TrackerEventTypeEVENT_FAIL:
		t.remove(cookie)
		*e = conn.Event{
			Time: at, Type: conn.EventFail, Conn: owned(r.row(), owner, r.socket.Fd),
			Direction: conn.Outbound, Error: syscall.Errno(r.socket.Error),
		}
		return true

	case bpf.TrackerEventTypeEVENT_CLOSE:
		t.remove(cookie)
		if s == nil && r.header.Oldstate == uint8(conn.StatusSynRecv) && owner == nil {
			return false // it was never a connection
		}
		if s != nil && s.owner == nil && s.direction == conn.Inbound {
			t.unaccepted[t.nextUnaccepted] = cookie
			t.nextUnaccepted = (t.nextUnaccepted + 1) % len(t.unaccepted)
		}
		t.fillClose(r, s, owner, at, e)
		return true
	}
	return false
}

// maxFree bounds the entries that are kept to be used again: as many as open and
// close while a batch of events is applied.
const maxFree = 4096

// put makes the socket of r an entry of the table, with owner as its holder.
func (t *table) put(r record, owner *conn.Process) *socket {
	row := r.row()
	s := t.sockets[row.Cookie]
	if s == nil {
		if n := len(t.free); n > 0 {
			s, t.free = t.free[n-1], t.free[:n-1]
		} else {
			s = new(socket)
		}
	}
	*s = socket{row: owned(row, owner, row.FD), owner: owner, ownerFD: row.FD, changed: t.clock}
	if row.Cookie != 0 {
		t.sockets[row.Cookie] = s
		delete(t.closed, row.Cookie) // it failed to connect, and tried again
	}
	return s
}

// remove takes a socket out of the table. Its entry is good until the next put.
func (t *table) remove(cookie uint64) {
	if s := t.sockets[cookie]; s != nil {
		delete(t.sockets, cookie)
		if len(t.free) < maxFree {
			t.free = append(t.free, s)
		}
	}
	if t.scanning {
		t.closed[cookie] = true
		delete(t.early, cookie)
	}
}

// owned returns row as held by owner through fd.
func owned(row conn.Conn, owner *conn.Process, fd int32) conn.Conn {
	row.FD = -1
	if owner != nil {
		row.FD, row.PID, row.Process = fd, owner.PID, owner
	}
	return row
}

// fill makes e an event of s, whose process is the owner.
func (s *socket) fill(e *conn.Event, kind conn.EventType, at time.Time) {
	row := s.row
	row.PID, row.Process = 0, nil
	*e = conn.Event{Time: at, Type: kind, Conn: owned(row, s.owner, s.ownerFD), Direction: s.direction}
}

// fillClose makes e the close event of record r, whose entry was s, nil if it had none.
func (t *table) fillClose(r record, s *socket, owner *conn.Process, at time.Time, e *conn.Event) {
	row := r.row()
	fd := r.socket.Fd
	direction := directionOf(bpf.TrackerRole(r.socket.Owner.Role))
	established := r.closing.Established
	if s != nil {
		if owner == nil {
			owner = s.owner
		}
		if direction == 0 {
			direction = s.direction
		}
		if established == 0 {
			established = s.established
		}
		if !row.Known.Has(conn.KnownInode) {
			row.Inode = s.row.Inode
			row.Known |= s.row.Known & conn.KnownInode
		}
		if fd < 0 {
			fd = s.ownerFD
		}
	}
	*e = conn.Event{Time: at, Type: conn.EventClose, Conn: owned(row, owner, fd), Direction: direction}
	if conn.Status(r.header.Oldstate) == conn.StatusListen {
		return
	}
	c := &conn.Close{
		Duration:      -1,
		BytesSent:     r.closing.BytesSent,
		BytesReceived: r.closing.BytesReceived,
		Retransmits:   r.closing.Retransmits,
		RTT:           -1,
		Reason:        closeReason(conn.Status(r.header.Oldstate), syscall.Errno(r.socket.Error)),
	}
	if established != 0 {
		c.Duration = time.Duration(r.header.Time - established)
	}
	if r.closing.SrttUs != 0 {
		c.RTT = time.Duration(r.closing.SrttUs) * time.Microsecond
	}
	e.Close = c
}

func directionOf(role bpf.TrackerRole) conn.Direction {
	switch role {
	case bpf.TrackerRoleROLE_CONNECT:
		return conn.Outbound
	case bpf.TrackerRoleROLE_CHILD, bpf.TrackerRoleROLE_ACCEPT:
		return conn.Inbound
	}
	return 0
}

// closeReason says how a connection ended that went from state old to CLOSE with
// the error err (sock.sk_err).
func closeReason(old conn.Status, err syscall.Errno) conn.Reason {
	switch err {
	case 0:
	case syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH: // tcp_write_err()
		return conn.ReasonTimeout
	case syscall.ECONNREFUSED:
		return conn.ReasonRefused
	default: // ECONNRESET and EPIPE: tcp_reset(); ECONNABORTED: tcp_abort()
		return conn.ReasonReset
	}
	switch old {
	case conn.StatusFinWait2, conn.StatusClosing, conn.StatusLastAck, conn.StatusTimeWait:
		return conn.ReasonFin
	}
	// Aborted on this side: unread data, SO_LINGER of 0, or an orphan that was given up.
	return conn.ReasonReset
}

// beginScan tells the table that a scan is about to start, and returns its clock.
func (t *table) beginScan() (start uint64) {
	t.scanning = true
	return t.clock
}

// abortScan tells the table that the scan has failed.
func (t *table) abortScan() {
	t.scanning = false
	clear(t.closed)
	clear(t.early)
}

// merge brings what a scan saw into the table. The scan must have begun after
// beginScan returned start, and every event up to its end must have been applied.
// It calls repaired for each socket that appeared or vanished without an event.
func (t *table) merge(snap *fallback.Snapshot, start uint64, at time.Time, repaired func(*conn.Event)) {
	defer t.abortScan()

	seen := make(map[uint64]bool, len(snap.Conns))
	listeners := make(map[listener]bool)
	var added []*socket
	t.transient = t.transient[:0]
	for _, c := range snap.Conns {
		if c.Status == conn.StatusListen {
			listeners[listener{c.NetNS, c.Laddr.Port()}] = true
		}
		if t.isTransient(&c) {
			t.transient = append(t.transient, c)
			continue
		}
		seen[c.Cookie] = true
		s := t.sockets[c.Cookie]
		switch {
		case t.closed[c.Cookie]:
		case s != nil:
			s.merge(&c, start)
		default:
			s = &socket{row: c, owner: c.Process, ownerFD: c.FD}
			if status, ok := t.early[c.Cookie]; ok {
				s.row.Status = status
			}
			t.sockets[c.Cookie] = s
			added = append(added, s)
		}
	}

	var e conn.Event
	for _, s := range added {
		s.direction = inferDirection(&s.row, listeners)
		if s.row.Status != conn.StatusSynSent { // which is not told by an event
			s.fill(&e, conn.EventSeed, at)
			e.Reconciled = true
			repaired(&e)
		}
	}
	for cookie, s := range t.sockets {
		if !seen[cookie] && s.changed <= start && slices.Contains(snap.Namespaces, s.row.NetNS) {
			delete(t.sockets, cookie)
			s.fill(&e, conn.EventClose, at)
			e.Conn.Status = conn.StatusClose
			e.Reconciled = true
			repaired(&e)
		}
	}
}

// isTransient reports whether c comes and goes without events: a request that is not
// established yet, or what the kernel puts in the place of a connection that it has
// closed (tcp_time_wait()), which shows in FIN_WAIT2 as long as the peer has not closed.
func (t *table) isTransient(c *conn.Conn) bool {
	switch c.Status {
	case conn.StatusTimeWait:
		return true
	case conn.StatusSynRecv:
		return c.Inode == 0
	case conn.StatusFinWait2:
		return c.Inode == 0 && t.sockets[c.Cookie] == nil // a connection without a process may still be one
	}
	return false
}

// merge takes from the row c of a scan what no event tells; and all of it, if the
// last event came before the scan began.
func (s *socket) merge(c *conn.Conn, start uint64) {
	if c.PID == 0 && s.changed > start {
		return // it may have been accepted since
	}
	status := s.row.Status
	s.row = *c
	if s.changed > start {
		s.row.Status = status
	}
	if s.owner == nil {
		s.owner, s.ownerFD = c.Process, c.FD
	} else if s.ownerFD < 0 && s.owner.PID == c.PID {
		s.ownerFD = c.FD
	}
}

type listener struct {
	netns uint32
	port  uint16
}

// inferDirection says who opened a connection that was there before the tracker:
// the peer, if somebody listens on its local port.
func inferDirection(c *conn.Conn, listeners map[listener]bool) conn.Direction {
	switch {
	case c.Status == conn.StatusListen:
		return 0
	case listeners[listener{c.NetNS, c.Laddr.Port()}]:
		return conn.Inbound
	}
	return conn.Outbound
}

// appendRows appends the rows of kind in the namespace netns, or in every one if it
// is 0, as psutil shows them.
func (t *table) appendRows(dst []conn.Conn, kind conn.Kind, netns uint32) []conn.Conn {
	for _, s := range t.sockets {
		if (netns == 0 || s.row.NetNS == netns) && kind.Has(s.row.Kind()) {
			dst = append(dst, s.row)
		}
	}
	for i := range t.transient {
		if c := &t.transient[i]; (netns == 0 || c.NetNS == netns) && kind.Has(c.Kind()) {
			dst = append(dst, *c)
		}
	}
	return dst
}

// seeds returns a seed event for each socket: listeners first, then by age.
func (t *table) seeds(at time.Time) []conn.Event {
	sockets := make([]*socket, 0, len(t.sockets))
	for _, s := range t.sockets {
		sockets = append(sockets, s)
	}
	slices.SortFunc(sockets, func(a, b *socket) int {
		if la, lb := a.row.Status == conn.StatusListen, b.row.Status == conn.StatusListen; la != lb {
			if la {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.row.Cookie, b.row.Cookie) // given out in ascending order
	})
	events := make([]conn.Event, len(sockets))
	for i, s := range sockets {
		s.fill(&events[i], conn.EventSeed, at)
	}
	return events
}
