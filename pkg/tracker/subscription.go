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

	// What the reader has taken over, so that it need not ask for each event.
	readMu sync.Mutex
	taken  []conn.Event
	next   int // taken[next:] has not been returned yet

	mu     sync.Mutex
	buffer []conn.Event // what waits
	gap    uint64       // events lost since the last that was buffered
	lost   uint64
	closed bool
	ready  chan struct{} // holds a token while there may be something for Next
}

const (
	// defaultBuffer is how many events wait for a slow reader.
	defaultBuffer = 1 << 16

	// keptBuffer is for how many events memory is kept while none waits.
	keptBuffer = 1 << 13
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
	for i := range seed { // what existed before is delivered first
		if s.filter.match(&seed[i]) {
			s.taken = append(s.taken, seed[i])
		}
	}
	return s
}

// push gives events to the reader, or counts them as lost.
func (s *Subscription) push(events []conn.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for i := range events {
		e := &events[i]
		if !s.filter.match(e) {
			continue
		}
		need := 1
		if s.gap > 0 {
			need = 2 // the gap is told where it was
		}
		if len(s.buffer)+need > s.limit {
			s.gap++
			s.lost++
			continue
		}
		if s.gap > 0 {
			s.buffer = append(s.buffer, s.takeGap(e.Time))
		}
		s.buffer = append(s.buffer, *e)
	}
	s.signal()
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
	s.readMu.Lock()
	defer s.readMu.Unlock()
	if s.next == len(s.taken) {
		if closed = s.refill(); s.next == len(s.taken) {
			return e, false, closed
		}
	}
	s.next++
	return s.taken[s.next-1], true, false
}

// refill takes over what waits. readMu is held.
func (s *Subscription) refill() (closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cap(s.taken) > keptBuffer {
		s.taken = nil // a stall is over
	}
	clear(s.taken) // let go of what it points to
	s.taken, s.buffer, s.next = s.buffer, s.taken[:0], 0
	if len(s.taken) == 0 && s.gap > 0 {
		s.taken = append(s.taken, s.takeGap(time.Now()))
	}
	return s.closed
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

// publish hands out events, oldest first. They remain the caller's.
func (h *hub) publish(events ...conn.Event) {
	if len(events) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.push(events)
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
