package tracker

import "time"

// Info says how a tracker sees what it sees. It does not change while the
// tracker runs.
type Info struct {
	Source  Source    // the source in use
	Hooks   []Hook    // what is attached to the kernel; none if Source polls
	Refused []Refusal // every better source or hook that could not be had, best first
	Limits  []string  // what cannot be seen this way, a sentence each
	Polling *Polling  // how Source is polled; nil if it need not be
}

// Polling says how a source is polled that does not tell of events by itself.
type Polling struct {
	// The time between two looks at the tables is Shortest, unless a look takes so much
	// CPU time that a core would be busy with it for more than 2 % of the time, and at
	// most Longest. A connection that lives longer is seen, with its process.
	Shortest, Longest time.Duration

	// Closes says that the kernel tells of sockets as it destroys them, so that closes
	// come at once, and with what the connection has carried.
	Closes bool
}

// A Hook is a BPF program and where it is attached.
type Hook struct {
	Purpose string // what it sees: "tcp states", "accept"
	Attach  string // the attach point, in libbpf's notation: "tp_btf/inet_sock_set_state"
	Program uint32 // the kernel's ID of the program, as bpftool shows it
}

// A Refusal is a source or hook that could not be had.
type Refusal struct {
	What   string // "ebpf", "fexit/inet_csk_accept"
	Err    error  // the reason
	Remedy string // what would mend it; "" if nothing would
}

// Stats is the account of a tracker since it was opened. At rest, Seen equals
// Delivered plus Lost.Events, exactly.
type Stats struct {
	Seen        uint64 // events that the hooks, or the poller, saw
	Delivered   uint64 // events that reached the table and the subscribers
	Lost        Lost
	Reconciled  uint64 // connections that were repaired from the kernel's tables after a loss
	Connections int    // TCP sockets in the table now, listeners included
	Subscribers int    // subscriptions that are open now
	Polls       uint64 // looks at the tables, where the source polls

	// What follows is of sources that poll; zero for others.

	PollInterval  time.Duration // between two looks, at present
	LongestUnseen time.Duration // what a connection had to live longer than, at worst, to be seen with its process
	Ownerless     uint64        // listen, connect and accept events whose process could not be found

	// Missed is how many connections, and attempts that failed, the kernel opened until
	// the last look without any event here: an upper bound, as the kernel counts them
	// (TcpActiveOpens, TcpPassiveOpens) but does not say which. They are neither among
	// Seen nor among Lost. -1: unknown.
	Missed int64
}

// Lost counts what was lost, by cause.
type Lost struct {
	RingFull       uint64 // events that found the ring buffer full
	MapFull        uint64 // accepted connections whose owner found no room in the kernel's map
	Recursion      uint64 // runs of a hook that the kernel skipped, as it was running on that CPU already: an event each, or at an accept or a connect at most one
	Closes         uint64 // closes that the kernel told to a source that polls, but found no room for
	SlowSubscriber uint64 // events that found a subscription's buffer full, summed over subscriptions
}

// Events returns how many events never reached the table.
func (l Lost) Events() uint64 { return l.RingFull + l.Recursion + l.Closes }
