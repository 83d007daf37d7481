// Ours calls the conntrace library, in a process of its own.
//
//	ours snapshot [SOURCE]   times NetConnections, or TakeSnapshot of a source, in turns
//	ours live                times AppendConnections of a tracker, in turns
//	ours stream [HOOKS]      counts events until SIGINT, then prints the counts as JSON
//	ours empty               attaches programs that do nothing where conntrace attaches its own, until SIGINT
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
	"github.com/conntrace/conntrace/pkg/tracker"
	"github.com/conntrace/conntrace/scripts/bench/turns"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ours:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx := context.Background()
	switch {
	case len(args) == 1 && args[0] == "snapshot":
		return netConnections(ctx)
	case len(args) == 2 && args[0] == "snapshot":
		return snapshot(ctx, tracker.Source(args[1]))
	case len(args) == 1 && args[0] == "live":
		return live(ctx)
	case len(args) == 1 && args[0] == "stream":
		return stream(ctx, nil)
	case len(args) == 2 && args[0] == "stream":
		return stream(ctx, strings.Split(args[1], ","))
	case len(args) == 1 && args[0] == "empty":
		return empty(ctx)
	}
	return errors.New("usage: ours snapshot [SOURCE] | live | stream [HOOKS] | empty")
}

func netConnections(ctx context.Context) error {
	source := func() string {
		s, err := tracker.TakeSnapshot(ctx, tracker.SnapshotConfig{Query: fallback.Query{Kind: conn.KindTCP}})
		if err != nil {
			return err.Error()
		}
		return "by " + string(s.Source)
	}
	return turns.Serve(source, func() (int, error) {
		rows, err := tracker.NetConnections(ctx, conn.KindTCP)
		return len(rows), err
	})
}

func snapshot(ctx context.Context, source tracker.Source) error {
	return turns.Serve(nil, func() (int, error) {
		s, err := tracker.TakeSnapshot(ctx, tracker.SnapshotConfig{Source: source, Query: fallback.Query{Kind: conn.KindTCP}})
		return len(s.Conns), err
	})
}

// live times reading the table of a tracker that is up to date. A look at
// everybody's descriptors, now and then, is another matter: NetConnections is one.
func live(ctx context.Context) error {
	t, err := tracker.Open(ctx, tracker.Config{Source: tracker.SourceEBPF, Freshness: tracker.NeverRefresh})
	if err != nil {
		return err
	}
	defer t.Close()
	var rows []conn.Conn
	return turns.Serve(nil, func() (int, error) {
		rows, err = t.AppendConnections(rows[:0], conn.KindTCP)
		return len(rows), err
	})
}

func stream(ctx context.Context, hooks []string) error {
	ctx, cancel := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer cancel()
	t, err := tracker.Open(ctx, tracker.Config{Source: tracker.SourceEBPF, Hooks: hooks})
	if err != nil {
		return err
	}
	defer t.Close()
	sub, err := t.Subscribe(tracker.Filter{NoSeed: true})
	if err != nil {
		return err
	}
	// Closed and then read to its end.
	defer context.AfterFunc(ctx, func() { sub.Close() })()

	var byType [conn.EventGap + 1]uint64
	var result turns.Stream
	for e, err := range sub.Events(context.Background()) {
		if err != nil {
			return err
		}
		if e.Type == conn.EventGap || isLoad(e.Laddr) || isLoad(e.Raddr) {
			byType[e.Type]++
		} else {
			result.Others++
		}
	}

	result.ByType = make(map[string]uint64)
	for typ, n := range byType {
		if n > 0 {
			result.ByType[conn.EventType(typ).String()] = n
		}
	}
	s := t.Stats()
	result.Stats.Seen, result.Stats.Delivered = s.Seen, s.Delivered
	result.Stats.RingFull, result.Stats.Recursion = s.Lost.RingFull, s.Lost.Recursion
	result.Stats.MapFull, result.Stats.SlowSubscriber = s.Lost.MapFull, s.Lost.SlowSubscriber
	for _, h := range t.Info().Hooks {
		result.Hooks = append(result.Hooks, h.Attach)
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// isLoad reports whether a belongs to the load generator.
func isLoad(a conn.Addr) bool {
	ip := a.IP()
	if !ip.Is4() {
		return false
	}
	b, net := ip.As4(), turns.LoadAddress(0)
	return b[0] == net[0] && b[1] == net[1]
}
