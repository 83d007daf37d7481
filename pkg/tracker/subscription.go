package tracker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A Subscription is one reader's view of the events, from the moment of
// [Tracker.Subscribe] on. Its methods may be called by several goroutines at once.
type Subscription struct {
	filter matcher
	hub    *hub
	limit  int

	mu     sync.Mutex
	seed   []conn.Event // what existed before, delivered first
	buffer []conn.Event // a ring: count events from head on
	head   int
	count  int
	gap    uint64 // events lost since the last that was buffered
	lost   uint64
	closed bool
	ready  chan struct{} // holds a token while there may be something for Next
}

const (
	// defaultBuffer is how many events wait for a slow reader.
	defaultBuffer = 1 << 16

	// keptBuffer is for how many events memory is kept while none waits.
	keptBuffer = 1 << 14
)

func newSubscription(h *hub, f Filter, seed []conn.Event) *Subscription {
	s := &Subscription{
		filter: newMatcher(f),
		hub:    h,
		limit:  f.Buffer,
		ready:  make(chan struct{}, 1),
	}
	if s.limit <= 0 {
		s.limit = defaultBuffer
	}
	for i := range seed {
		if s.filter.match(&seed[i]) {
			s.seed = append(s.seed, seed[i])
		}
	}
	return s
}

// push gives e to the reader, or counts it as lost.
func (s *Subscription) push(e *conn.Event) {
	if !s.filter.match(e) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	need := 1
	if s.gap > 0 {
		need = 2 // the gap is told where it was
	}
	if s.count+need > s.limit {
		s.gap++
		s.lost++
		return
	}
	if s.gap > 0 {
		s.enqueue(s.takeGap(e.Time))
	}
	s.enqueue(*e)
	s.signal()
}

func (s *Subscription) enqueue(e conn.Event) {
	if s.count == len(s.buffer) {
		grown := make([]conn.Event, min(max(2*s.count, 64), s.limit))
		n := copy(grown, s.buffer[s.head:])
		copy(grown[n:], s.buffer[:s.head])
		s.buffer, s.head = grown, 0
	}
	s.buffer[(s.head+s.count)%len(s.buffer)] = e
	s.count++
}

func (s *Subscription) takeGap(at time.Time) conn.Event {
	e := gapEvent(at, s.gap)
	s.gap = 0
	return e
}

func gapEvent(at time.Time, lost uint64) conn.Event {
	return conn.Event{Time: at, Type: conn.EventGap, Conn: conn.Conn{FD: -1}, Lost: lost}
}

func (s *Subscription) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// take returns the next event if there is one.
func (s *Subscription) take() (e conn.Event, ok, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.seed) > 0:
		e, s.seed = s.seed[0], s.seed[1:]
		if len(s.seed) == 0 {
			s.seed = nil
		}
		return e, true, false
	case s.count > 0:
		e = s.buffer[s.head]
		s.buffer[s.head] = conn.Event{}
		s.head = (s.head + 1) % len(s.buffer)
		s.count--
		if s.count == 0 && len(s.buffer) > keptBuffer {
			s.buffer, s.head = nil, 0 // a stall is over
		}
		return e, true, false
	case s.gap > 0:
		return s.takeGap(time.Now()), true, false
	}
	return e, false, s.closed
}

// Next returns the next event, waiting for it. Its error is the context's, or
// wraps [os.ErrClosed] once the subscription or its tracker is closed and every
// event that was buffered has been returned.
func (s *Subscription) Next(ctx context.Context) (conn.Event, error) {
	for {
		e, ok, closed := s.take()
		if ok {
			return e, nil
		}
		if closed {
			s.signal() // for the next caller
			return e, fmt.Errorf("subscription: %w", os.ErrClosed)
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return e, ctx.Err()
		}
	}
}

// Events returns the events as a sequence. It ends when the subscription or its
// tracker is closed; if ctx ends first, the context's error is the last element.
func (s *Subscription) Events(ctx context.Context) iter.Seq2[conn.Event, error] {
	return func(yield func(conn.Event, error) bool) {
		for {
			e, err := s.Next(ctx)
			if errors.Is(err, os.ErrClosed) || !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Lost returns how many events this subscription lost because its buffer was
// full. Each loss is also told by a gap event.
func (s *Subscription) Lost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Close ends the subscription: Next returns what has happened until now, then an
// error. It may be called more than once.
func (s *Subscription) Close() error {
	s.hub.flush()
	s.hub.remove(s)
	s.end()
	return nil
}

func (s *Subscription) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.signal()
}

// A hub hands every event to every subscription.
type hub struct {
	flush func() // publishes what has happened until now

	mu   sync.Mutex
	subs map[*Subscription]struct{} // nil once the hub is closed
	lost uint64                     // by subscriptions that are closed
}

func newHub() *hub { return &hub{flush: func() {}, subs: make(map[*Subscription]struct{})} }

func (h *hub) publish(e *conn.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.push(e)
	}
}

func (h *hub) add(f Filter, seed []conn.Event) (*Subscription, error) {
	s := newSubscription(h, f, seed)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs == nil {
		return nil, errClosed
	}
	h.subs[s] = struct{}{}
	return s, nil
}

func (h *hub) remove(s *Subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[s]; ok {
		delete(h.subs, s)
		h.lost += s.Lost()
	}
}

// stats returns how many subscriptions are open, and what all that ever were have lost.
func (h *hub) stats() (open int, lost uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	lost = h.lost
	for s := range h.subs {
		lost += s.Lost()
	}
	return len(h.subs), lost
}

func (h *hub) close() {
	h.mu.Lock()
	subs := h.subs
	h.subs = nil
	for s := range subs {
		h.lost += s.Lost()
	}
	h.mu.Unlock()
	for s := range subs {
		s.end()
	}
}
