package fallback

import (
	"context"
	"net/netip"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A Poller makes events of TCP sockets by comparing what a source says now with
// what it said before. A connection that comes and goes between two polls is seen
// only if it leaves a socket in TIME_WAIT, and then as a close event alone.
//
// A Poller must not be used by several goroutines at once.
type Poller struct {
	src   Source
	query Query
	last  Snapshot

	now, before *generation
	events      []conn.Event
	time        time.Time
}

// A generation is what one poll saw. The memory of the last but one is used
// again.
type generation struct {
	sockets   []polled
	index     map[socketKey]int32 // into sockets
	listeners map[endpoint]struct{}
}

// A polled is a socket in a poller's memory. Its Conn keeps the last owner that
// was known.
type polled struct {
	conn.Conn
	phase     phase
	direction conn.Direction
	announced bool // a connection that an event has told of
	seen      bool // in the generation that followed, too
}

// A phase is a part of a socket's life, as far as events go.
type phase uint8

const (
	listening phase = iota
	opening         // not a connection yet
	connected       // established or closing
	ended
)

// A socketKey tells a socket from others that exist at the same moment.
type socketKey struct {
	netns        uint32
	laddr, raddr conn.Addr
	listener     uint64 // cookie or inode of a listener: SO_REUSEPORT lets many have an address
}

// An endpoint is what a socket listens on. No IP is every one.
type endpoint struct {
	netns  uint32
	family conn.Family
	port   uint16
	ip     netip.Addr
}

// NewPoller returns a poller of the TCP sockets that q asks src for; q must ask
// for some.
func NewPoller(src Source, q Query) *Poller {
	q.Kind &= conn.KindTCP
	return &Poller{src: src, query: q, now: newGeneration(), before: newGeneration()}
}

func newGeneration() *generation {
	return &generation{index: make(map[socketKey]int32), listeners: make(map[endpoint]struct{})}
}

// Last returns the snapshot that the last successful Poll took. Its warnings say
// what the events cannot tell of.
func (p *Poller) Last() Snapshot { return p.last }

// Seeds returns a seed event for each socket that the last Poll saw, but for those
// that have come to their end already: what a reader needs to begin with.
func (p *Poller) Seeds() []conn.Event {
	events := make([]conn.Event, 0, len(p.now.sockets))
	for i := range p.now.sockets {
		if s := &p.now.sockets[i]; s.phase != ended {
			events = append(events, conn.Event{Time: p.time, Type: conn.EventSeed, Conn: s.Conn, Direction: s.direction})
		}
	}
	return events
}

// Len returns how many sockets the last Poll saw.
func (p *Poller) Len() int { return len(p.now.sockets) }

// Poll asks the source and returns what has happened since the last call that
// succeeded; the first one returns a seed event for each socket.
//
//   - A connection is told of once a process has it: an inbound one when it has been
//     accepted, which SYN_RECV and the queue of a listener come before. Its direction
//     is inbound if there is, or was at the last poll, a listener on its local
//     address.
//   - It is closed when its socket is gone or has turned into one in TIME_WAIT. The
//     owner is the last one that was known, as the kernel has none for it by then.
//   - A socket that vanishes from SYN_SENT has failed; the error is not known.
func (p *Poller) Poll(ctx context.Context) ([]conn.Event, error) {
	snap, err := p.src.Snapshot(ctx, p.query)
	if err != nil {
		return nil, err
	}
	first := p.time.IsZero()
	p.last, p.time, p.events = snap, time.Now(), nil
	p.before, p.now = p.now, p.before
	p.now.reset()

	for i := range snap.Conns {
		p.now.addListener(&snap.Conns[i])
	}
	for i := range snap.Conns {
		p.add(&snap.Conns[i], first)
	}
	for i := range p.before.sockets {
		if s := &p.before.sockets[i]; !s.seen {
			p.vanished(s)
		}
	}
	return p.events, nil
}

// add takes c into the generation of now and makes the events of what has become
// of it.
func (p *Poller) add(c *conn.Conn, first bool) {
	s := polled{Conn: *c, phase: phaseOf(c.Status)}
	key := keyOf(c)
	old := p.now.find(key) // the table changed while it was read, and has both
	if old == nil {
		old = p.before.find(key)
	}
	if old != nil {
		old.seen = true
		if s.phase != ended && !same(old, &s) {
			if old.phase == connected && c.Inode == 0 && c.Status == conn.StatusFinWait2 {
				// tcp_time_wait replaces the socket while it still waits for the peer's FIN,
				// and this is the other one's state (tw_substate).
				s.phase = ended
			} else {
				p.vanished(old)
				old = nil
			}
		}
	}
	if old != nil {
		s.inherit(old)
	}
	if s.direction == 0 {
		s.direction = p.directionOf(&s)
	}
	accepted := s.phase == connected && (s.Inode != 0 || !s.Known.Has(conn.KnownInode))
	switch {
	case first:
		p.emit(conn.EventSeed, &s)
	case s.phase == listening && old == nil:
		p.emit(conn.EventListen, &s)
	case accepted && !s.announced && s.direction == conn.Inbound:
		p.emit(conn.EventAccept, &s)
	case accepted && !s.announced:
		p.emit(conn.EventConnect, &s)
	case s.phase == ended && (old == nil || old.phase != ended):
		p.emit(conn.EventClose, &s)
	}
	s.announced = s.announced || accepted
	p.now.put(key, &s)
}

// vanished makes the event of a socket that is no more.
func (p *Poller) vanished(s *polled) {
	switch {
	case s.phase == listening || s.phase == connected:
		p.emit(conn.EventClose, s)
	case s.phase == opening && s.Status == conn.StatusSynSent:
		p.emit(conn.EventFail, s)
	}
}

func (p *Poller) emit(typ conn.EventType, s *polled) {
	e := conn.Event{Time: p.time, Type: typ, Conn: s.Conn, Direction: s.direction}
	if typ == conn.EventClose || typ == conn.EventFail {
		e.Status = conn.StatusClose
	}
	p.events = append(p.events, e)
}

func (p *Poller) directionOf(s *polled) conn.Direction {
	switch {
	case s.phase == listening:
		return 0
	case s.Status == conn.StatusSynSent:
		return conn.Outbound
	case s.Status == conn.StatusSynRecv, p.now.listens(&s.Conn), p.before.listens(&s.Conn):
		return conn.Inbound
	}
	return conn.Outbound
}

func (g *generation) reset() {
	g.sockets = g.sockets[:0]
	clear(g.index)
	clear(g.listeners)
}

// find returns the socket with the key, nil if there is none. It is good until
// the next put.
func (g *generation) find(key socketKey) *polled {
	if i, ok := g.index[key]; ok {
		return &g.sockets[i]
	}
	return nil
}

func (g *generation) put(key socketKey, s *polled) {
	if old := g.find(key); old != nil {
		*old = *s
		return
	}
	g.index[key] = int32(len(g.sockets))
	g.sockets = append(g.sockets, *s)
}

func (g *generation) addListener(c *conn.Conn) {
	if c.Status == conn.StatusListen {
		e := endpointOf(c)
		if e.ip.Unmap().IsUnspecified() {
			e.ip = netip.Addr{}
		}
		g.listeners[e] = struct{}{}
	}
}

// listens reports whether a socket listens on the local address of c.
func (g *generation) listens(c *conn.Conn) bool {
	e := endpointOf(c)
	_, ok := g.listeners[e]
	if !ok {
		e.ip = netip.Addr{}
		_, ok = g.listeners[e]
	}
	return ok
}

// inherit takes over what was known of the same socket before.
func (s *polled) inherit(old *polled) {
	s.direction, s.announced = old.direction, old.announced
	if s.PID == 0 && old.PID != 0 || s.phase == ended {
		// An orphan has no inode, and a socket in TIME_WAIT a cookie of its own.
		status := s.Status
		s.Conn = old.Conn
		s.Status = status
	}
}

// same reports whether two sockets with the same addresses are the same. The
// inode of one changes from and to 0 as it is accepted and as it is orphaned.
func same(a, b *polled) bool {
	if a.Known.Has(conn.KnownCookie) && b.Known.Has(conn.KnownCookie) {
		return a.Cookie == b.Cookie
	}
	return a.Inode == b.Inode || a.Inode == 0 || b.Inode == 0
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
	key := socketKey{netns: c.NetNS, laddr: c.Laddr, raddr: c.Raddr}
	if c.Status == conn.StatusListen {
		key.listener = c.Inode
		if c.Known.Has(conn.KnownCookie) {
			key.listener = c.Cookie
		}
	}
	return key
}

func endpointOf(c *conn.Conn) endpoint {
	return endpoint{netns: c.NetNS, family: c.Family, port: c.Laddr.Port(), ip: c.Laddr.IP()}
}
