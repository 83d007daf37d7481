package tracker

import (
	"net/netip"
	"slices"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A Filter chooses events. Its zero value passes all but state events; each field
// that is set narrows the choice. Gap events always pass.
type Filter struct {
	NoSeed    bool             // leave out the sockets that exist already
	Events    []conn.EventType // of one of these types; state events must be named, and asked for by Config.States
	Kind      conn.Kind        // of these kinds; events are of TCP sockets only
	PIDs      []int32          // owned by one of these processes
	Comms     []string         // owned by a process with one of these command names
	Ports     []uint16         // with one of these ports at either end
	Prefixes  []netip.Prefix   // with an address in one of these at either end; IPv4 ones cover IPv4-mapped addresses
	Direction conn.Direction   // of this direction

	// Buffer is how many events wait for a slow reader before further ones are lost;
	// 0 is 65,536. The sockets that exist already do not count.
	Buffer int
}

// A matcher is a Filter, prepared.
type matcher struct {
	all    bool // nothing is filtered but state events
	events uint // bit n: EventType n passes
	Filter
}

func newMatcher(f Filter) matcher {
	m := matcher{Filter: f}
	for _, t := range f.Events {
		m.events |= 1 << t
	}
	if len(f.Events) == 0 {
		m.events = ^uint(0) &^ (1 << conn.EventState)
	}
	m.all = len(f.Events) == 0 && f.Kind == 0 && len(f.PIDs) == 0 && len(f.Comms) == 0 &&
		len(f.Ports) == 0 && len(f.Prefixes) == 0 && f.Direction == 0
	return m
}

func (m *matcher) match(e *conn.Event) bool {
	if m.all {
		return e.Type != conn.EventState
	}
	if e.Type == conn.EventGap {
		return true
	}
	return m.events&(1<<e.Type) != 0 &&
		(m.Kind == 0 || m.Kind.Has(e.Kind())) &&
		(m.Direction == 0 || m.Direction == e.Direction) &&
		(len(m.PIDs) == 0 || slices.Contains(m.PIDs, e.PID)) &&
		(len(m.Comms) == 0 || e.Process != nil && slices.Contains(m.Comms, e.Process.Comm)) &&
		(len(m.Ports) == 0 || slices.Contains(m.Ports, e.Laddr.Port()) || slices.Contains(m.Ports, e.Raddr.Port())) &&
		(len(m.Prefixes) == 0 || e.Laddr.In(m.Prefixes) || e.Raddr.In(m.Prefixes))
}
