package tracker

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

func numbered(n int) *conn.Event {
	return &conn.Event{Type: conn.EventConnect, Conn: conn.Conn{PID: int32(n)}}
}

// drain returns what a subscription holds: the PIDs of its events, and for a gap
// its size, negated.
func drain(s *Subscription) (got []int) {
	for {
		e, ok, _ := s.take()
		switch {
		case !ok:
			return got
		case e.Type == conn.EventGap:
			got = append(got, -int(e.Lost))
		default:
			got = append(got, int(e.PID))
		}
	}
}

func equal(t *testing.T, what string, got []int, want ...int) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
}

func TestSubscriptionGap(t *testing.T) {
	h := newHub()
	s, err := h.add(Filter{Buffer: 4}, []conn.Event{*numbered(100)})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 7 { // 4, 5 and 6 are lost
		h.publish(*numbered(n))
	}
	equal(t, "full", drain(s), 100, 0, 1, 2, 3, -3)

	for n := range 6 { // 4 and 5 are lost
		h.publish(*numbered(n))
	}
	s.take() // and with it takes over the three behind it
	h.publish(*numbered(6))
	s.take()
	h.publish(*numbered(7))
	equal(t, "gap in its place", drain(s), 2, 3, -2, 6, 7)
	if s.Lost() != 5 {
		t.Errorf("Lost() = %d", s.Lost())
	}
}

func TestSubscriptionOrder(t *testing.T) {
	h := newHub()
	s, err := h.add(Filter{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	next := 0
	for range 3 { // a stall comes to its end
		for range 2 * keptBuffer {
			h.publish(*numbered(next))
		}
		if n := len(drain(s)); n != 2*keptBuffer || cap(s.buffer)+cap(s.taken) > 2*keptBuffer {
			t.Fatalf("%d events, memory for %d is kept", n, cap(s.buffer)+cap(s.taken))
		}
	}
	for n := range 1000 { // grows, and wraps around
		h.publish(*numbered(n))
		if n%3 == 0 {
			if e, ok, _ := s.take(); !ok || int(e.PID) != next {
				t.Fatalf("got %d, want %d", e.PID, next)
			}
			next++
		}
	}
	for _, n := range drain(s) {
		if n != next {
			t.Fatalf("got %d, want %d", n, next)
		}
		next++
	}
	if next != 1000 {
		t.Errorf("%d events", next)
	}
}

func TestSubscriptionClose(t *testing.T) {
	h := newHub()
	s, err := h.add(Filter{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.publish(*numbered(1))
	waiting := make(chan error)
	other, err := h.add(Filter{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		go func() {
			_, err := other.Next(t.Context())
			waiting <- err
		}()
	}
	h.close()
	for range 3 {
		if err := <-waiting; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Next of a closed subscription: %v", err)
		}
	}
	if e, err := s.Next(t.Context()); err != nil || e.PID != 1 {
		t.Errorf("what was buffered: %v, %v", e.PID, err)
	}
	if _, err := s.Next(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Next at the end: %v", err)
	}
	if _, err := h.add(Filter{}, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("add to a closed hub: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestEvents(t *testing.T) {
	h := newHub()
	s, err := h.add(Filter{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.publish(*numbered(1))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	var got []int
	var last error
	for e, err := range s.Events(ctx) {
		if last = err; err == nil {
			got = append(got, int(e.PID))
		}
	}
	equal(t, "events", got, 1)
	if !errors.Is(last, context.DeadlineExceeded) {
		t.Errorf("last error: %v", last)
	}

	h.publish(*numbered(2))
	s.Close()
	got = nil
	for e, err := range s.Events(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		got = append(got, int(e.PID))
	}
	equal(t, "events of a closed subscription", got, 2)
}

func TestFilter(t *testing.T) {
	e := conn.Event{
		Type: conn.EventAccept, Direction: conn.Inbound,
		Conn: conn.Conn{
			Family: conn.Inet6, Type: conn.Stream, PID: 7, Process: &conn.Process{PID: 7, Comm: "nginx"},
			Laddr: conn.AddrFrom(netip.MustParseAddrPort("[::ffff:10.1.2.3]:443")),
			Raddr: conn.AddrFrom(netip.MustParseAddrPort("[2001:db8::1]:5000")),
		},
	}
	prefixes := func(s ...string) (ps []netip.Prefix) {
		for _, p := range s {
			ps = append(ps, netip.MustParsePrefix(p))
		}
		return ps
	}
	for _, tt := range []struct {
		name string
		f    Filter
		want bool
	}{
		{"zero", Filter{}, true},
		{"event", Filter{Events: []conn.EventType{conn.EventConnect, conn.EventAccept}}, true},
		{"other event", Filter{Events: []conn.EventType{conn.EventConnect}}, false},
		{"kind", Filter{Kind: conn.KindTCP6}, true},
		{"other kind", Filter{Kind: conn.KindTCP4}, false},
		{"pid", Filter{PIDs: []int32{1, 7}}, true},
		{"other pid", Filter{PIDs: []int32{1}}, false},
		{"comm", Filter{Comms: []string{"nginx"}}, true},
		{"other comm", Filter{Comms: []string{"ngin"}}, false},
		{"local port", Filter{Ports: []uint16{443}}, true},
		{"remote port", Filter{Ports: []uint16{5000}}, true},
		{"other port", Filter{Ports: []uint16{80}}, false},
		{"remote prefix", Filter{Prefixes: prefixes("2001:db8::/32")}, true},
		{"mapped", Filter{Prefixes: prefixes("10.0.0.0/8")}, true},
		{"mapped as it is", Filter{Prefixes: prefixes("::ffff:10.1.0.0/112")}, true},
		{"other prefix", Filter{Prefixes: prefixes("192.0.2.0/24")}, false},
		{"direction", Filter{Direction: conn.Inbound}, true},
		{"other direction", Filter{Direction: conn.Outbound}, false},
		{"all must match", Filter{PIDs: []int32{7}, Ports: []uint16{80}}, false},
	} {
		m := newMatcher(tt.f)
		if got := m.match(&e); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
		gap := gapEvent(time.Time{}, 1)
		if !m.match(&gap) {
			t.Errorf("%s: holds back a gap", tt.name)
		}
		state := e
		state.Type = conn.EventState
		if m.match(&state) {
			t.Errorf("%s: passes a state event", tt.name)
		}
	}
	e.Type = conn.EventState
	for want, f := range map[bool]Filter{
		true:  {Events: []conn.EventType{conn.EventClose, conn.EventState}, PIDs: []int32{7}},
		false: {Events: []conn.EventType{conn.EventState}, PIDs: []int32{1}},
	} {
		if m := newMatcher(f); m.match(&e) != want {
			t.Errorf("a state event that was asked for passes %+v: %t", f, !want)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	h := newHub()
	s, err := h.add(Filter{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	e := numbered(1)
	b.ReportAllocs()
	for b.Loop() {
		h.publish(*e)
		s.take()
	}
}
