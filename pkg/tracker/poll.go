package tracker

import (
	"context"
	"fmt"
	"sync"
	"time"

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
	if _, err := p.poller.Poll(ctx); err != nil {
		return nil, Info{}, err
	}
	p.account.Polls++

	background, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.wg.Go(func() { p.run(background) })
	return p, Info{Limits: []string{
		fmt.Sprintf("connections that are opened and closed between two polls (%s apart) are missed", cfg.PollInterval),
		"the time of an event is when it was polled",
		"a closed connection says neither how much it carried nor how it ended",
	}}, nil
}

// run polls until ctx ends.
func (p *polling) run(ctx context.Context) {
	ticker := time.NewTicker(p.cfg.PollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := p.poll(ctx); err != nil && ctx.Err() == nil {
			p.cfg.Logger.Error("cannot poll", "source", p.source.Name(), "err", err)
		}
	}
}

func (p *polling) poll(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	events, err := p.poller.Poll(ctx)
	if err != nil {
		return err
	}
	p.account.Polls++
	p.account.Seen += uint64(len(events))
	p.account.Delivered += uint64(len(events))
	p.hub.publish(events...)
	return nil
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
	p.account.Connections = p.poller.Len()
	return p.account
}

func (p *polling) close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
	return nil
}
