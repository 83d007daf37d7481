package tracker

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
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

	// Hooks forces how BPF programs see things, by the names of [HookNames]: only what
	// is named is tried, the best first, for those purposes that have a hook of such a
	// name. Open fails if all are refused, and finds no other source. Empty is the best
	// that the kernel allows. For tests, and to see what a hook costs.
	Hooks []string

	// ProcFS is where procfs is mounted; "" is /proc. Another root gives the view
	// of the system that it belongs to, such as the host's from a container.
	ProcFS string

	// RingBuffer is the size in bytes of the buffer between kernel and user space,
	// rounded up to a power of two of pages; 0 is 64 MiB, enough for a second of
	// 45,000 connections. It is the kernel's memory, and of the process's only a small
	// window. What does not fit is lost, and counted.
	RingBuffer int

	// MaxConnections bounds the accepted connections whose owner the kernel side
	// remembers at a time; 0 is 262,144. Memory is used only for those that exist;
	// before Linux 6.1, for all (some 120 bytes each). What does not fit has no owner,
	// and is counted.
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

// HookNames returns the names that Config.Hooks may have, best first for each
// purpose: tp_btf, raw_tp and tracepoint see the states of sockets; fexit, kretprobe
// and syscall see accept(2), and fexit and syscall failing connect(2) too.
func HookNames() []string {
	return []string{"tp_btf", "raw_tp", "tracepoint", "fexit", "kretprobe", "syscall"}
}

// checkHooks makes Hooks mean the source that has them.
func (c *Config) checkHooks() error {
	if len(c.Hooks) == 0 {
		return nil
	}
	for _, name := range c.Hooks {
		if !slices.Contains(HookNames(), name) {
			return fmt.Errorf("unknown hook %q; valid ones are %v", name, HookNames())
		}
	}
	if c.Source != SourceAuto && c.Source != SourceEBPF {
		return fmt.Errorf("hooks are of source %s, not of %s: %w", SourceEBPF, c.Source, errors.ErrUnsupported)
	}
	c.Source = SourceEBPF
	return nil
}
