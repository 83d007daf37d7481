package tracker

import (
	"log/slog"
	"time"
)

// Freshness values with a meaning of their own.
const (
	AlwaysExact  time.Duration = 1  // look again at every call of Connections
	NeverRefresh time.Duration = -1 // never look again: what events tell is enough
)

// Config says how to track. The zero Config picks the best source that this
// process may use and suits most programs.
type Config struct {
	// Source forces one source instead of the best. Open fails if it is refused.
	Source Source

	// ProcFS is where procfs is mounted; "" is /proc. Another root gives the view
	// of the system that it belongs to, such as the host's from a container.
	ProcFS string

	// RingBuffer is the size in bytes of the buffer between kernel and user space,
	// rounded up to a power of two of pages; 0 is 64 MiB, enough for a second of
	// 45,000 connections. It is the kernel's memory, and of the process's only a small
	// window. What does not fit is lost, and counted.
	RingBuffer int

	// MaxConnections bounds the accepted connections whose owner the kernel side
	// remembers at a time; 0 is 262,144. Memory is used only for those that exist.
	// What does not fit has no owner, and is counted.
	MaxConnections int

	// States asks for state events, one for each change of a TCP socket's state, beside
	// the others. Only SourceEBPF has them: other sources are refused. They reach those
	// whose Filter.Events names them.
	States bool

	// AllNamespaces makes Connections show the sockets of every network namespace
	// instead of the caller's only. Events come from all of them either way.
	AllNamespaces bool

	// PollInterval is the time between two looks at the tables where events have to
	// be made by polling; 0 is one second.
	PollInterval time.Duration

	// Freshness is how old the last look at every process's descriptors may be when
	// Connections is called. Events show who opens, accepts and closes connections, but
	// not who duplicates or passes descriptors. 0 is one second; see also [AlwaysExact]
	// and [NeverRefresh].
	Freshness time.Duration

	// Logger gets what goes wrong while the tracker runs; nil is silent. Every such
	// thing is counted in Stats too.
	Logger *slog.Logger
}
