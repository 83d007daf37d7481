package tracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

var (
	errStates = fmt.Errorf("changes of state cannot be polled: %w", errors.ErrUnsupported)
	errClosed = fmt.Errorf("tracker: %w", os.ErrClosed)
)

// A Tracker follows the TCP sockets of the machine. Its methods may be called by
// several goroutines at once.
type Tracker struct {
	info    Info
	states  bool // Config.States
	hub     *hub
	backend backend
}

// A backend feeds a Tracker: it publishes events to the hub it was made with.
type backend interface {
	// subscribe adds a subscription to the hub at a moment when seeds returns
	// exactly the sockets whose first events have been published.
	subscribe(f Filter) (*Subscription, error)
	appendConnections(dst []conn.Conn, kind conn.Kind) ([]conn.Conn, error)
	stats() Stats
	close() error
}

// Open begins to track with the best source that cfg and the system allow. It
// returns once everything that happens from then on is seen; ctx bounds only Open
// itself. The caller must Close the tracker.
//
// If a source that cfg.Source names is refused, the error says why and what would
// mend it. SourceAuto fails only if there is no source at all.
func Open(ctx context.Context, cfg Config) (*Tracker, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	candidates, err := choose(candidates, cfg.Source, func(c candidate) Source { return c.source })
	if err != nil {
		return nil, err
	}
	var refused []Refusal
	for _, c := range candidates {
		if cfg.States && c.source != SourceEBPF {
			refused = append(refused, Refusal{What: string(c.source), Err: errStates})
			continue
		}
		t := &Tracker{hub: newHub(), states: cfg.States}
		b, info, err := c.open(ctx, cfg, t.hub)
		if err == nil {
			t.backend, t.info = b, info
			t.info.Source = c.source
			t.info.Refused = append(refused, info.Refused...)
			return t, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		refused = append(refused, refusal(string(c.source), err))
	}
	return nil, refusedError(refused)
}

// Connections returns the rows of kind, as [NetConnections] does, from the
// tracker's table. A connection that was established before the call is in it.
// See [Config.Freshness].
func (t *Tracker) Connections(kind conn.Kind) ([]conn.Conn, error) {
	return t.AppendConnections(nil, kind)
}

// AppendConnections appends what [Tracker.Connections] returns to dst.
func (t *Tracker) AppendConnections(dst []conn.Conn, kind conn.Kind) ([]conn.Conn, error) {
	if err := kind.Check(); err != nil {
		return dst, err
	}
	return t.backend.appendConnections(dst, kind)
}

// Subscribe returns a subscription to the events that f lets pass. Unless f says
// otherwise it begins with a seed event for each socket that exists; whatever
// happens from then on follows, and nothing is missing or told twice in between.
func (t *Tracker) Subscribe(f Filter) (*Subscription, error) {
	if !t.states && slices.Contains(f.Events, conn.EventState) {
		return nil, errors.New("state events: Config.States does not ask for them")
	}
	return t.backend.subscribe(f)
}

// Info says how the tracker sees what it sees. The caller must not modify it.
func (t *Tracker) Info() Info { return t.info }

// Stats returns the account so far.
func (t *Tracker) Stats() Stats {
	s := t.backend.stats()
	s.Subscribers, s.Lost.SlowSubscriber = t.hub.stats()
	return s
}

// Close detaches everything from the kernel and ends all subscriptions. It may be
// called more than once; all other methods fail with [os.ErrClosed] then, but for
// Info and Stats.
func (t *Tracker) Close() error {
	err := t.backend.close()
	t.hub.close()
	return err
}

// setDefaults replaces zero values by what they mean.
func (c *Config) setDefaults() error {
	if err := c.checkHooks(); err != nil {
		return err
	}
	if c.ProcFS == "" {
		c.ProcFS = "/proc"
	}
	if c.RingBuffer == 0 {
		c.RingBuffer = 64 << 20
	}
	if c.RingBuffer < 0 || c.RingBuffer > 1<<30 {
		return fmt.Errorf("ring buffer of %d bytes: must be between 1 and %d", c.RingBuffer, 1<<30)
	}
	pages := os.Getpagesize()
	for pages < c.RingBuffer {
		pages *= 2
	}
	c.RingBuffer = pages
	if c.MaxConnections == 0 {
		c.MaxConnections = 1 << 18
	}
	if c.MaxConnections < 0 || c.MaxConnections > 1<<26 {
		return fmt.Errorf("at most %d connections: must be between 1 and %d", c.MaxConnections, 1<<26)
	}
	if c.PollInterval == 0 {
		c.PollInterval = time.Second
	}
	if c.PollInterval < 0 {
		return fmt.Errorf("poll interval of %s: must not be negative", c.PollInterval)
	}
	if c.Freshness == 0 {
		c.Freshness = time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}
