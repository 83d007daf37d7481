package tracker

import (
	"cmp"
	"maps"
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
	slab    slab               // which they lie in
	peak    int                // how many there have been since sockets was made
	states  stateWords         // of those that are on their way to an end
	holders holderWatch
	failed  failures

	// What the last scan saw of sockets that come and go without events (isTransient).
	transient []conn.Conn

	// Namespaces that the last scan for strays took for gone, and since when. See absentNamespaces.
	absent map[uint32]time.Time

	// The inbound connections that were closed last of those that nobody had accepted,
	// a ring. An accept may still come: see EVENT_ACCEPT.
	unaccepted     [256]uint64
	nextUnaccepted int

	clock    uint64                 // counts events
	scanning bool                   // between beginScan and merge
	closed   map[uint64]bool        // sockets that were closed while scanning
	early    map[uint64]conn.Status // states of sockets that are not in the table yet

	closings []conn.Close // for the next close events
}

// A socket is one entry of the table.
type socket struct {
	row         conn.Conn     // as Connections shows it: PID and FD are those of a holder
	owner       *conn.Process // who listened, connected or accepted; nil: unknown
	ownerFD     int32         // the descriptor that it got by that; -1: unknown
	direction   conn.Direction
	accepted    bool   // that has been told
	index       uint8  // in chunk
	chunk       *chunk // where it lies
	established uint64 // CLOCK_MONOTONIC, ns; 0: unknown
	changed     uint64 // table.clock at the last event
}

func newTable() *table {
	return &table{
		sockets: make(map[uint64]*socket),
		closed:  make(map[uint64]bool),
		early:   make(map[uint64]conn.Status),
		holders: newHolderWatch(),
	}
}

// apply brings a record of the ring buffer into the table. It returns true if e,
// which it fills, is to be published. owner is the record's owner, nil if it has none.
func (t *table) apply(r record, owner *conn.Process, at time.Time, e *conn.Event) bool {
	t.clock++
	cookie := r.header.Cookie
	if cookie == 0 && r.socket != nil {
		return t.applyNameless(r, owner, at, e)
	}

	switch bpf.TrackerEventType(r.header.Type) {
	case bpf.TrackerEventTypeEVENT_STATE:
		if s := t.sockets[cookie]; s != nil {
			s.row.Status = conn.Status(r.header.Newstate)
			s.changed = t.clock
		} else if t.scanning {
			t.early[cookie] = conn.Status(r.header.Newstate)
		}
		return false

	case bpf.TrackerEventTypeEVENT_LISTEN:
		t.put(r.owned, owner).fill(e, conn.EventListen, at)
		return true

	case bpf.TrackerEventTypeEVENT_CONNECT:
		s := t.put(r.owned, owner)
		s.direction = conn.Outbound
		s.established = r.header.Time
		s.fill(e, conn.EventConnect, at)
		return true

	case bpf.TrackerEventTypeEVENT_CHILD:
		s := t.sockets[cookie]
		if s == nil { // else it was accepted before it was established (tcp_check_req)
			s = t.add(cookie)
			fillSocket(&s.row, r.socket)
			s.row.Known |= conn.KnownInode // it has none before it is accepted
			s.owner, s.ownerFD = nil, -1
			s.direction, s.accepted = conn.Inbound, false
		}
		s.row.Status = conn.StatusEstablished
		s.established, s.changed = r.header.Time, t.clock
		return false

	case bpf.TrackerEventTypeEVENT_ACCEPT, bpf.TrackerEventTypeEVENT_MAYBE_ACCEPT:
		s := t.sockets[cookie]
		established, known := uint64(0), s != nil
		if known {
			established = s.established
			if s.accepted {
				return false // two programs have met at it
			}
		}
		if r.header.Type == uint8(bpf.TrackerEventTypeEVENT_MAYBE_ACCEPT) && (!known || !s.unaccepted()) {
			return false
		}
		s = t.put(r.owned, owner)
		s.direction, s.established, s.accepted = conn.Inbound, established, true
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
		t.failed.add(cookie)
		fillFail(e, r.owned, owner, at)
		return true

	case bpf.TrackerEventTypeEVENT_FAIL_CALL:
		if t.failed.take(cookie) {
			return false // the failure was told when the socket's state changed
		}
		fillFail(e, r.owned, owner, at)
		return true

	case bpf.TrackerEventTypeEVENT_CLOSE:
		s := t.sockets[cookie]
		never := s == nil && r.header.Oldstate == uint8(conn.StatusSynRecv) && owner == nil // was it a connection
		if !never {
			t.fillClose(r.closing, s, owner, at, e)
		}
		if s == nil || !s.accepted && s.direction == conn.Inbound { // nil: it may have been reset in SYN_RECV
			t.unaccepted[t.nextUnaccepted] = cookie
			t.nextUnaccepted = (t.nextUnaccepted + 1) % len(t.unaccepted)
		}
		t.remove(cookie)
		return !never

	case bpf.TrackerEventTypeEVENT_FORK, bpf.TrackerEventTypeEVENT_EXEC, bpf.TrackerEventTypeEVENT_EXIT:
		t.holders.apply(r.task, t.clock)
	}
	return false
}

// applyNameless is apply for a socket without a cookie, which cannot be told from
// others: its events are published, and the next scan finds it.
func (t *table) applyNameless(r record, owner *conn.Process, at time.Time, e *conn.Event) bool {
	s := socket{owner: owner, ownerFD: -1}
	if r.owned != nil {
		fillOwned(&s.row, r.owned, owner)
		s.ownerFD = r.owned.Fd
	}
	kind := conn.EventListen
	switch bpf.TrackerEventType(r.header.Type) {
	case bpf.TrackerEventTypeEVENT_LISTEN:
	case bpf.TrackerEventTypeEVENT_CONNECT:
		kind, s.direction = conn.EventConnect, conn.Outbound
	case bpf.TrackerEventTypeEVENT_ACCEPT:
		kind, s.direction = conn.EventAccept, conn.Inbound
	case bpf.TrackerEventTypeEVENT_FAIL, bpf.TrackerEventTypeEVENT_FAIL_CALL:
		fillFail(e, r.owned, owner, at)
		return true
	case bpf.TrackerEventTypeEVENT_CLOSE:
		never := r.header.Oldstate == uint8(conn.StatusSynRecv) && owner == nil
		if !never {
			t.fillClose(r.closing, nil, owner, at, e)
		}
		return !never
	default:
		return false
	}
	t.holders.stale, t.holders.changed = true, t.clock
	s.fill(e, kind, at)
	return true
}

// add returns the entry of a socket, a new one if there is none yet.
func (t *table) add(cookie uint64) *socket {
	s := t.sockets[cookie]
	if s == nil {
		s = t.slab.get()
		t.sockets[cookie] = s
		t.peak = max(t.peak, len(t.sockets))
	}
	if len(t.closed) > 0 {
		delete(t.closed, cookie) // it failed to connect, and tried again
	}
	s.changed = t.clock
	return s
}

// put makes the socket of o an entry of the table, with owner as its holder.
func (t *table) put(o *wireOwned, owner *conn.Process) *socket {
	s := t.add(o.Socket.Header.Cookie)
	fillOwned(&s.row, o, owner)
	s.owner, s.ownerFD = owner, o.Fd
	s.direction, s.established, s.accepted = 0, 0, false
	if owner != nil {
		t.holders.add(owner.PID)
	}
	return s
}

// remove takes a socket out of the table.
func (t *table) remove(cookie uint64) {
	if s := t.sockets[cookie]; s != nil {
		delete(t.sockets, cookie)
		t.slab.put(s)
		// A map keeps the memory that it has had.
		if t.peak > 1<<14 && len(t.sockets) < t.peak/8 {
			t.sockets = maps.Clone(t.sockets)
			t.peak = len(t.sockets)
		}
	}
	if t.scanning {
		t.closed[cookie] = true
		delete(t.early, cookie)
	}
}

// show makes c, a copy of a row, what the socket is now: its way to an end is not
// told by events.
func (t *table) show(c *conn.Conn) {
	status, orphan, ok := t.states.of(c.Cookie)
	if !ok {
		return
	}
	c.Status = max(c.Status, status) // in the order of their numbers, unless an event had to tell the last one
	if orphan {
		c.PID, c.FD, c.Process, c.Holders = 0, -1, nil, nil
		c.Inode, c.UID = 0, 0
		c.Known = c.Known&^(conn.KnownUID|conn.KnownHolders) | conn.KnownInode
	}
}

// unaccepted reports whether s is a listener's child whose accept has not been told.
func (s *socket) unaccepted() bool {
	return s.direction == conn.Inbound && !s.accepted && s.established != 0
}

// fill makes e an event of s, whose process is the owner.
func (s *socket) fill(e *conn.Event, kind conn.EventType, at time.Time) {
	*e = conn.Event{Time: at, Type: kind, Conn: s.row, Direction: s.direction}
	e.PID, e.Process, e.FD = 0, nil, -1
	if s.owner != nil {
		e.PID, e.Process, e.FD = s.owner.PID, s.owner, s.ownerFD
	}
}

// fillFail makes e the event of an attempt to connect that came to nothing.
func fillFail(e *conn.Event, o *wireOwned, owner *conn.Process, at time.Time) {
	*e = conn.Event{Time: at, Type: conn.EventFail, Direction: conn.Outbound, Error: syscall.Errno(o.Error)}
	fillOwned(&e.Conn, o, owner)
}

// fillClose makes e the close event of record c, whose entry is s, nil if it has none.
func (t *table) fillClose(c *wireClose, s *socket, owner *conn.Process, at time.Time, e *conn.Event) {
	*e = conn.Event{Time: at, Type: conn.EventClose}
	if s != nil && owner == nil {
		owner = s.owner
	}
	fillOwned(&e.Conn, &c.Owned, owner)
	role := bpf.TrackerRole(c.Owned.Owner.Role)
	e.Direction = directionOf(role)
	established := c.Established
	if s != nil {
		if e.Direction == 0 {
			e.Direction = s.direction
		}
		if established == 0 {
			established = s.established
		}
		if !e.Known.Has(conn.KnownInode) {
			e.Inode = s.row.Inode
			e.Known |= s.row.Known & conn.KnownInode
		}
		if owner != nil && e.FD < 0 {
			e.FD = s.ownerFD
		}
	}
	old := conn.Status(c.Owned.Socket.Header.Oldstate)
	if old == conn.StatusListen {
		return
	}
	if len(t.closings) == 0 {
		t.closings = make([]conn.Close, 64)
	}
	e.Close, t.closings = &t.closings[0], t.closings[1:]
	*e.Close = conn.Close{
		Duration:      -1,
		BytesSent:     c.BytesSent,
		BytesReceived: c.BytesReceived,
		Retransmits:   c.Retransmits,
		RTT:           -1,
		Unaccepted:    s != nil && owner == nil && s.unaccepted(),
	}
	e.Close.Reason, e.Close.By = closeReason(old, syscall.Errno(c.Owned.Error))
	if established != 0 {
		e.Close.Duration = time.Duration(c.Owned.Socket.Header.Time - established)
	}
	if c.SrttUs != 0 {
		e.Close.RTT = time.Duration(c.SrttUs) * time.Microsecond
	}
}

func directionOf(role bpf.TrackerRole) conn.Direction {
	switch role {
	case bpf.TrackerRoleROLE_CONNECT:
		return conn.Outbound
	case bpf.TrackerRoleROLE_ACCEPT:
		return conn.Inbound
	}
	return 0
}

// closeReason says how a connection ended that went from state old to CLOSE with
// the error err (sock.sk_err), and which side began it.
func closeReason(old conn.Status, err syscall.Errno) (conn.Reason, conn.Side) {
	switch err {
	case 0:
	case syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH: // tcp_write_err()
		return conn.ReasonTimeout, 0
	case syscall.ECONNREFUSED:
		return conn.ReasonRefused, conn.Remote
	case syscall.ECONNABORTED: // tcp_abort(): ss -K
		return conn.ReasonReset, conn.Local
	default: // ECONNRESET and EPIPE: tcp_reset()
		return conn.ReasonReset, conn.Remote
	}
	switch old {
	case conn.StatusFinWait2, conn.StatusClosing, conn.StatusTimeWait:
		return conn.ReasonFin, conn.Local
	case conn.StatusLastAck: // by way of CLOSE_WAIT
		return conn.ReasonFin, conn.Remote
	}
	// Aborted on this side: unread data, SO_LINGER of 0, or an orphan that was given up.
	return conn.ReasonReset, conn.Local
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
	var vanished []uint64
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
			s = t.add(c.Cookie)
			s.row, s.owner, s.ownerFD = c, c.Process, c.FD
			s.direction, s.established, s.changed, s.accepted = 0, 0, 0, false
			if status, ok := t.early[c.Cookie]; ok {
				s.row.Status = status
			}
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
	whole := t.absentNamespaces(snap, start, at) // with no socket at all
	for _, netns := range snap.Namespaces {
		whole[netns] = true
	}
	for cookie, s := range t.sockets {
		if !seen[cookie] && s.changed <= start && whole[s.row.NetNS] {
			s.fill(&e, conn.EventClose, at)
			e.Conn.Status = conn.StatusClose
			e.Reconciled = true
			repaired(&e)
			vanished = append(vanished, cookie)
		}
	}
	for _, cookie := range vanished {
		t.remove(cookie)
	}
	t.holders.merge(snap, start)
}

// farewell is how long a network namespace must have been taken for gone before its
// sockets are: while the kernel takes it apart, it tells of their ends.
const farewell = time.Second

// absentNamespaces returns the namespaces whose sockets must all be gone although no
// scan can say so, as it reads only the namespaces that it finds: no process is in them,
// and nobody holds a socket of theirs, for as long as farewell. It is needed where
// events were lost, and knows none unless snap was asked for strays.
func (t *table) absentNamespaces(snap *fallback.Snapshot, start uint64, at time.Time) (gone map[uint32]bool) {
	gone = make(map[uint32]bool)
	if snap.Strays == nil || snap.Hidden > 0 {
		return gone
	}
	exist := make(map[uint32]bool)
	for _, netns := range snap.Namespaces {
		exist[netns] = true
	}
	held := make(map[uint64]bool, len(snap.Strays))
	for _, inode := range snap.Strays {
		held[inode] = true
	}
	before := t.absent
	t.absent = make(map[uint32]time.Time)
	for _, s := range t.sockets {
		netns := s.row.NetNS
		if exist[netns] {
			continue
		}
		if held[s.row.Inode] || s.changed > start {
			exist[netns] = true
			delete(t.absent, netns)
			delete(gone, netns)
			continue
		}
		since, ok := before[netns]
		if !ok {
			since = at
		}
		if at.Sub(since) >= farewell {
			gone[netns] = true
		} else {
			t.absent[netns] = since
		}
	}
	return gone
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
	for s := range t.slab.all {
		if (netns == 0 || s.row.NetNS == netns) && kind.Has(s.row.Kind()) {
			dst = append(dst, s.row)
			t.show(&dst[len(dst)-1])
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
		if status, _, ok := t.states.of(s.row.Cookie); ok {
			events[i].Status = max(events[i].Status, status)
		}
	}
	return events
}
