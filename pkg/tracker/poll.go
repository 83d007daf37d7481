package tracker

import (
	"context"
	"fmt"
	"sync"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// polling is the backend for sources that have to be asked: events come from
// comparing what they say now with what they said before.
type polling struct {
	cfg    Config
	source fallback.Source
	poller *fallback.Poller
	hub    *hub

	mu      sync.Mutex // makes polls, subscriptions and closing take turns
	account Stats
	warned  string // the last warning that was logged
	closed  bool

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func openPolling(ctx context.Context, cfg Config, h *hub, open func(procfs string) (fallback.Source, error)) (backend, Info, error) {
	source, err := open(cfg.ProcFS)
	if err != nil {
		return nil, Info{}, err
	}
	p := &polling{
		cfg: cfg, source: source, hub: h,
		poller: fallback.NewPoller(source, fallback.Query{Kind: conn.KindTCP}),
	}
	p.poller.Interval = cfg.PollInterval
	if _, err := p.poller.Poll(ctx); err != nil {
		p.poller.Close()
		return nil, Info{}, err
	}
	p.tellWarnings()
	h.flush = p.flush

	background, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.wg.Go(func() { p.run(background) })
	poll := Polling{Closes: p.poller.TellsCloses()}
	poll.Shortest, poll.Longest = p.poller.Bounds()
	return p, Info{Polling: &poll, Limits: pollingLimits(poll)}, nil
}

// pollingLimits says what cannot be seen by polling so.
func pollingLimits(p Polling) []string {
	limits := []string{fmt.Sprintf(
		"connections that live for less than the time between two looks may be missed: %s, or up to %s if looks take long",
		p.Shortest, p.Longest)}
	if p.Closes {
		return append(limits,
			"the time of an event is when it was polled, but for closes that the kernel tells",
			"of a connection that was missed the close is shown, as a rule, but not its process",
			"how long a connection lasted is unknown, and at times how it ended")
	}
	return append(limits,
		"the time of an event is when it was polled",
		"a closed connection says neither how much it carried nor how it ended")
}

// run waits and polls until ctx ends.
func (p *polling) run(ctx context.Context) {
	for p.poller.Wait(ctx) == nil {
		if err := p.poll(ctx); err != nil && ctx.Err() == nil {
			p.cfg.Logger.Error("cannot poll", "source", p.source.Name(), "err", err)
		}
	}
}

func (p *polling) poll(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	events, err := p.poller.Next(ctx)
	p.publish(events)
	p.tellWarnings()
	return err
}

// flush publishes what the kernel has told until now.
func (p *polling) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	events, err := p.poller.Closes()
	p.publish(events)
	if err != nil {
		p.cfg.Logger.Error("cannot read what sockets were destroyed", "source", p.source.Name(), "err", err)
	}
}

// publish hands events out. mu is held.
func (p *polling) publish(events []conn.Event) {
	for i := range events {
		if e := &events[i]; e.Type != conn.EventGap {
			p.account.Seen++
			p.account.Delivered++
		} else {
			p.account.Seen += e.Lost
			p.account.Lost.Closes += e.Lost
		}
	}
	p.hub.publish(events...)
}

// tellWarnings logs what the last look could not read, once. mu is held, or nobody
// else is there yet.
func (p *polling) tellWarnings() {
	for _, w := range p.poller.Warnings() {
		text := w.Error()
		if p.warned == text {
			continue
		}
		p.warned = text
		p.cfg.Logger.Warn("a part of the socket tables was not seen: " + text)
	}
}

func (p *polling) subscribe(f Filter) (*Subscription, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errClosed
	}
	var seeds []conn.Event
	if !f.NoSeed {
		seeds = p.poller.Seeds()
	}
	return p.hub.add(f, seeds)
}

// appendConnections asks the source: its answer is the best that can be had.
func (p *polling) appendConnections(dst []conn.Conn, kind conn.Kind) ([]conn.Conn, error) {
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return dst, errClosed
	}
	snap, err := p.source.Snapshot(context.Background(), fallback.Query{Kind: kind, AllNamespaces: p.cfg.AllNamespaces})
	return append(dst, snap.Conns...), err
}

func (p *polling) stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	polled := p.poller.Stats()
	p.account.Connections = polled.Sockets
	p.account.Polls = polled.Looks
	p.account.PollInterval = polled.Interval
	p.account.LongestUnseen = polled.Longest
	p.account.Missed = polled.Missed
	p.account.Ownerless = polled.Ownerless
	return p.account
}

func (p *polling) close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
	if closed {
		return nil
	}
	return p.poller.Close()
}
