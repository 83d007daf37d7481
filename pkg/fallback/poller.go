package fallback

import (
	"context"
	"errors"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A Poller makes events of TCP sockets by comparing what a source says now with
// what it said before.
//
// A connection that lives longer than the time between two looks is seen, with its
// process; see [PollerStats.Longest]. A shorter one may be missed, and
// [PollerStats.Missed] says how many there can have been. Of some only the end is
// seen: as a socket in TIME_WAIT, or where the kernel tells of sockets that it
// destroys ([Poller.TellsCloses]). They are a close event, or a fail event, without
// a process.
//
// Its methods must not be used by several goroutines at once, but for [Poller.Wait].
type Poller struct {
	// Interval is the shortest time between two looks that [Poller.Next] takes; 0 is
	// one second. It must not change once the Poller is in use.
	Interval time.Duration

	observer observer
	err      error // why there is no observer
	pace     pace
	stats    PollerStats
	warnings []error

	sockets   map[socketKey]*polled
	listeners listeners
	look      uint32 // number of the last look; what a socket was seen by
	seen      int    // sockets that this look has seen
	unsettled int    // of those, how many must be looked at again whatever the counters say
	over      int    // sockets whose end has been told, and that are kept to know them again
	touched   []*polled
	unknown   []*polled // of those, what the observer shall identify
	events    []conn.Event
	now       time.Time

	counters  counters // before the last look
	base      uint64   // connections that the kernel had opened before the first look
	opened    uint64   // connections that were seen to have been opened since
	connected bool     // the first look has been taken
}

// PollerStats is the account of a [Poller].
type PollerStats struct {
	Looks    uint64        // looks at the socket tables
	Interval time.Duration // time between two looks at present
	Longest  time.Duration // longest time from a look to the end of the next one: what lived longer was seen. A time when the kernel's counters say that none is needed is as good as a look

	// Missed is how many connections, and attempts that failed, the kernel opened
	// between the first look and the last without any sign of them here: an upper
	// bound, by the counters ActiveOpens and PassiveOpens of RFC 4022. -1: unknown.
	Missed int64

	Lost       uint64 // closes that the kernel told, but found no room for in the buffer
	Ownerless  uint64 // listen, connect and accept events whose process could not be found
	Hidden     int    // processes whose descriptors may not be read, when last all were looked through
	Sockets    int    // that there are now, listeners included
	ShortLived uint64 // connections of which only the end was seen
}

// NewPoller returns a poller of the TCP sockets that q asks src for; q must ask
// for some. The network namespace is the one that the calling thread is in, where
// src is of the caller's.
func NewPoller(src Source, q Query) *Poller {
	q.Kind &= conn.KindTCP
	p := &Poller{sockets: make(map[socketKey]*polled), listeners: make(listeners), stats: PollerStats{Missed: -1}}
	if o, ok := src.(observable); ok && q.PID == 0 && !q.Holders && !q.AllNamespaces {
		p.observer, p.err = o.observe(q)
	}
	if p.observer == nil && p.err == nil {
		p.observer = &snapshotObserver{src: src, query: q}
	}
	return p
}

// Close releases what the poller uses. It must not be used any more.
func (p *Poller) Close() error {
	if p.observer == nil {
		return nil
	}
	return p.observer.close()
}

// TellsCloses reports whether the kernel tells of every socket as it destroys it, so
// that closes need not be polled for.
func (p *Poller) TellsCloses() bool { return p.observer != nil && p.observer.tellsCloses() }

// Warnings returns what the last look could not read or understand.
func (p *Poller) Warnings() []error { return p.warnings }

// Len returns how many sockets there are, by the last look and what was told since.
func (p *Poller) Len() int { return len(p.sockets) - p.over }

// Stats returns the account so far.
func (p *Poller) Stats() PollerStats {
	s := p.stats
	s.Sockets = p.Len()
	s.Interval = p.pace.interval(p.shortest())
	return s
}

func (p *Poller) shortest() time.Duration {
	if p.Interval > 0 {
		return p.Interval
	}
	return time.Second
}

// Seeds returns a seed event for each socket there is, but for those that have come
// to their end already: what a reader needs to begin with.
func (p *Poller) Seeds() []conn.Event {
	events := make([]conn.Event, 0, len(p.sockets))
	for _, s := range p.sockets {
		if s.phase != ended && !s.over {
			events = append(events, conn.Event{Time: p.now, Type: conn.EventSeed, Conn: s.Conn, Direction: s.direction})
		}
	}
	return events
}

// Wait waits until it is time for [Poller.Next], or until ctx ends. It may be called
// while another goroutine uses the Poller, if that does not call Poll or Next.
func (p *Poller) Wait(ctx context.Context) error {
	if p.err != nil {
		return p.err
	}
	p.observer.wait(ctx, p.pace.due(p.shortest()))
	return ctx.Err()
}

// Next returns what has happened since the last call of Next or Poll, as far as it
// can be told without looking at the tables before it is time to, see
// [Poller.Bounds]. Where the kernel's counters say that nothing is new, it looks at
// every fifth time only.
func (p *Poller) Next(ctx context.Context) ([]conn.Event, error) {
	if p.err != nil {
		return nil, p.err
	}
	now := time.Now()
	if now.Before(p.pace.due(p.shortest())) {
		return p.Closes()
	}
	if now.Before(p.pace.deadline(p.shortest())) && p.quiet() {
		p.stats.Longest = max(p.stats.Longest, p.pace.skipped(now))
		return p.Closes()
	}
	return p.Poll(ctx)
}

// Closes returns what the kernel has told since, and does not look at the tables.
func (p *Poller) Closes() ([]conn.Event, error) {
	p.events = nil
	err := p.takeCloses()
	return p.events, err
}

// Bounds returns the shortest and the longest time between two looks that Next
// takes. It is the shortest, unless looks take so much CPU time that less than 64
// times as much would lie between them; the longest is ten of the shortest.
func (p *Poller) Bounds() (shortest, longest time.Duration) {
	return p.shortest(), maxStretch * p.shortest()
}

// quiet reports whether the counters say that a look would show nothing new. Every
// connection that is opened counts, for good, and every one that ends; so does a
// listener, unless another socket has gone at the same time.
func (p *Poller) quiet() bool {
	if !p.connected || p.unsettled > 0 {
		return false
	}
	now, ok := p.observer.count()
	return ok && now == p.counters
}

// Poll looks at the tables and returns what has happened since the last call that
// succeeded; the first one returns what [Poller.Seeds] does. It may return events and
// an error.
//
//   - A connection is told of once a process has it: an inbound one when it has been
//     accepted, which SYN_RECV and the queue of a listener come before.
//   - It is closed when its socket is gone or has turned into one in TIME_WAIT. The
//     owner is the last one that was known, as the kernel has none for it by then.
//   - A socket that vanishes from SYN_SENT has failed; the error is not known.
//   - Who opened a connection is told where it is certain or nearly so, and is unknown
//     else: see [conn.Direction]. Such a one is a connect event.
func (p *Poller) Poll(ctx context.Context) ([]conn.Event, error) {
	if p.err != nil {
		return nil, p.err
	}
	p.events = nil
	closesErr := p.takeCloses()
	began, stop := time.Now(), cpuTimer()
	counted, _ := p.observer.count()
	p.look++
	p.seen, p.unsettled = 0, 0
	warnings, err := p.observer.look(ctx, p.row)
	if err != nil {
		stop()
		p.pace.failed(began)
		return p.events, errors.Join(closesErr, err) // what was touched stays so until a look is complete
	}
	p.warnings, p.counters, p.now = warnings, counted, time.Now()
	p.listeners.forget(p.look - 1)
	err = p.identify(ctx)
	p.compare()
	p.account(counted)
	if !p.connected {
		p.connected = true
		p.events = p.Seeds()
	}
	p.stats.Longest = max(p.stats.Longest, p.pace.looked(began, time.Now(), stop()))
	p.stats.Looks++
	return p.events, errors.Join(closesErr, err)
}

// row takes in a row of the table. It is called for every socket at every look, and
// most have not changed.
func (p *Poller) row(c *conn.Conn) {
	told := p.observer.tellsCloses()
	if told && c.Status == conn.StatusTimeWait {
		return // what it was before has its own end
	}
	if c.Status == conn.StatusListen {
		p.listeners.add(c, p.look)
	}
	key := keyOf(c)
	s := p.sockets[key]
	if s != nil && !s.same(c) {
		p.vanish(s)
		p.forget(key, s)
		s = nil
	}
	if s == nil {
		s = &polled{Conn: *c, inode: c.Inode, phase: phaseOf(c.Status), look: p.look - 1}
		p.sockets[key] = s
		p.touch(s)
	}
	if s.look != p.look {
		s.look = p.look
		p.seen++
	}
	s.missing = 0
	if s.Status != c.Status || s.inode != c.Inode || c.PID != 0 && (c.PID != s.PID || c.FD != s.FD) {
		s.update(c)
		p.touch(s)
	} else if s.unsettled {
		p.touch(s)
	}
}

func (p *Poller) touch(s *polled) {
	if !s.touched {
		s.touched = true
		p.touched = append(p.touched, s)
	}
}

// identify has the observer tell whose the new sockets are, and says who opened
// them.
func (p *Poller) identify(ctx context.Context) error {
	p.unknown = p.unknown[:0]
	for _, s := range p.touched {
		if s.wantsOwner() || s.phase == connected && s.direction == 0 {
			p.unknown = append(p.unknown, s)
		}
	}
	var err error
	if len(p.unknown) > 0 {
		var hidden int
		hidden, err = p.observer.identify(ctx, p.unknown, p.listeners)
		if hidden >= 0 && err == nil {
			p.stats.Hidden = hidden
		}
	}
	for _, s := range p.unknown {
		s.tries++
		if s.phase == listening {
			p.listeners.add(&s.Conn, p.look)
		}
	}
	for _, s := range p.touched {
		if s.direction == 0 && s.phase != listening {
			s.direction = p.directionOf(s)
		}
	}
	return err
}

// compare makes the events of the sockets that this look has touched, and of those
// that it has not seen.
func (p *Poller) compare() {
	ends := p.ends()
	if p.seen != len(p.sockets) || ends != nil {
		for key, s := range p.sockets {
			switch end := ends[tupleOf(&s.Conn)]; {
			case end != nil && s.phase != ended:
				// What the connection has left in TIME_WAIT; it may have been read before it left.
				p.tell(s)
				p.vanish(s)
				p.finish(end)
				p.forget(key, s)
			case s.look == p.look:
			case p.observer.tellsCloses():
				p.miss(key, s)
			default:
				p.vanish(s)
				p.forget(key, s)
			}
		}
	}
	for _, s := range p.touched {
		s.touched = false
		if !s.removed {
			p.tell(s)
		}
	}
	clear(p.touched)
	p.touched = p.touched[:0]
}

// ends returns the new sockets in TIME_WAIT, which are what is left of others, if
// they cannot be told to be that by their key; nil if there are none.
func (p *Poller) ends() map[socketKey]*polled {
	var ends map[socketKey]*polled
	for _, s := range p.touched {
		if s.phase == ended && !s.over && s.Known.Has(conn.KnownCookie) {
			if ends == nil {
				ends = make(map[socketKey]*polled)
			}
			ends[tupleOf(&s.Conn)] = s
		}
	}
	return ends
}

// miss deals with a socket that is not in the tables, where the kernel tells of
// those that it destroys. It does so a moment later; but only much later if a process
// keeps a socket whose connection is at its end, and then that is told now. It is
// kept in memory, so as to be known when the kernel tells of it. A kernel's own socket
// may vanish without a word.
func (p *Poller) miss(key socketKey, s *polled) {
	held := s.PID != 0 && p.observer.holds(&s.Conn)
	s.missing++
	switch {
	case s.over && held:
		s.missing = 0
	case s.over && s.missing > 1:
		p.forget(key, s)
	case s.over:
	case held || s.missing > 1:
		p.vanish(s)
		p.finish(s)
		s.missing = 0
	default:
		p.unsettled++
	}
}

// tell makes the event of what s has become.
func (p *Poller) tell(s *polled) {
	switch {
	case s.phase == ended && !s.over:
		p.finish(s)
		if !s.announced && p.connected {
			p.stats.ShortLived++
		}
		p.emit(conn.EventClose, s)
	case s.phase == listening && !s.announced:
		s.announced = true
		p.emit(conn.EventListen, s)
	case s.accepted() && !s.announced:
		s.announced = true
		if s.direction == conn.Inbound {
			p.emit(conn.EventAccept, s)
		} else {
			p.emit(conn.EventConnect, s)
		}
	}
	s.unsettled = s.phase == opening || s.phase == connected && !s.accepted() || s.wantsOwner()
	if s.unsettled {
		p.unsettled++
	}
	if !s.counted && s.Status != conn.StatusListen && s.Status != conn.StatusSynRecv {
		s.counted = true
		if p.connected {
			p.opened++
		}
	}
}

// vanish makes the event of a socket that is no more.
func (p *Poller) vanish(s *polled) {
	switch {
	case s.over:
	case s.phase == listening || s.phase == connected:
		p.emit(conn.EventClose, s)
	case s.phase == opening && s.Status == conn.StatusSynSent:
		p.emit(conn.EventFail, s)
	}
}

func (p *Poller) emit(typ conn.EventType, s *polled) {
	if !p.connected {
		return // whoever comes gets seeds
	}
	e := conn.Event{Time: time.Now(), Type: typ, Conn: s.Conn, Direction: s.direction}
	if typ == conn.EventClose || typ == conn.EventFail {
		e.Status = conn.StatusClose
	} else if e.PID == 0 {
		p.stats.Ownerless++
	}
	p.events = append(p.events, e)
}

// finish marks s as one whose end has been told.
func (p *Poller) finish(s *polled) {
	if !s.over {
		s.over = true
		p.over++
	}
}

// forget takes s out of the poller's memory.
func (p *Poller) forget(key socketKey, s *polled) {
	delete(p.sockets, key)
	s.removed = true
	if s.over {
		p.over--
	}
	if s.look == p.look {
		p.seen--
	}
}

// takeCloses makes the events of the sockets that the kernel has told to be
// destroyed. Each of them comes once, after the last look that can have seen it began.
func (p *Poller) takeCloses() error {
	if !p.TellsCloses() {
		return nil
	}
	lost, err := p.observer.closes(p.destroyed)
	if lost > 0 && p.connected {
		p.stats.Lost += lost
		p.events = append(p.events, conn.Event{Time: time.Now(), Type: conn.EventGap, Conn: conn.Conn{FD: -1}, Lost: lost})
	}
	return err
}

// destroyed makes the event of the end of a socket, unless that has been told.
func (p *Poller) destroyed(d *destroyed) {
	key := keyOf(&d.Conn)
	s := p.sockets[key]
	if s == nil {
		p.shortLived(d)
		return
	}
	before := len(p.events)
	if s.phase == opening && d.established {
		s.phase = connected
	}
	p.vanish(s)
	if len(p.events) > before && s.phase == connected {
		p.events[before].Close = d.close(s.direction)
	}
	p.forget(key, s)
}

// shortLived makes the event of a connection, or an attempt, that came and went
// between two looks. Of listeners, and of what is unconnected, the kernel does not
// tell enough.
func (p *Poller) shortLived(d *destroyed) {
	if !p.connected || !d.Raddr.IsValid() {
		return
	}
	s := polled{Conn: d.Conn, phase: connected, direction: d.direction}
	if s.direction == 0 {
		s.direction = p.directionOf(&s)
	}
	p.opened++
	p.stats.ShortLived++
	if !d.established && s.direction != conn.Inbound {
		p.emit(conn.EventFail, &s)
		return
	}
	p.emit(conn.EventClose, &s)
	p.events[len(p.events)-1].Close = d.close(s.direction)
}

// account compares what was seen with the kernel's counters, which were at before
// when the look began.
func (p *Poller) account(before counters) {
	if !p.connected {
		p.base = before.active + before.passive
	}
	now, ok := p.observer.count()
	if !ok {
		return
	}
	p.stats.Missed = max(0, int64(now.active+now.passive-p.base-p.opened))
}
