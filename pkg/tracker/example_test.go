package tracker_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// Who listens on what, as psutil.net_connections("tcp") knows it.
func ExampleNetConnections() {
	conns, err := tracker.NetConnections(context.Background(), conn.KindTCP)
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range conns {
		if c.Status != conn.StatusListen {
			continue
		}
		if c.PID == 0 {
			fmt.Println(c.Laddr, "by a process that this one may not look into")
			continue
		}
		fmt.Println(c.Laddr, "by process", c.PID)
	}
}

// The errors about a process can be told apart.
func ExampleNetConnectionsPID_errors() {
	conns, err := tracker.NetConnectionsPID(context.Background(), conn.KindInet, 1)
	switch {
	case errors.Is(err, conn.ErrNoSuchProcess):
		fmt.Println("it has ended")
	case errors.Is(err, fs.ErrPermission):
		fmt.Println("it is another user's")
	case err != nil:
		log.Fatal(err)
	default:
		fmt.Println(len(conns), "sockets")
	}
}

// Every socket of every network namespace, with all the processes that share it,
// and what could not be seen.
func ExampleTakeSnapshot() {
	snap, err := tracker.TakeSnapshot(context.Background(), tracker.SnapshotConfig{
		Query: fallback.Query{Kind: conn.KindAll, Holders: true, AllNamespaces: true},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range snap.Conns {
		fmt.Println(c.NetNS, c.Family, c.Type, c.Laddr, c.Raddr, c.Status)
		for _, h := range c.Holders {
			fmt.Println("\tdescriptor", h.FD, "of process", h.PID)
		}
	}

	for _, w := range snap.Warnings {
		fmt.Println("incomplete:", w)
	}
	if snap.Hidden > 0 {
		fmt.Println(snap.Hidden, "processes may not be looked into")
	}
	for _, r := range snap.Refused {
		fmt.Println("read with", snap.Source, "as", r.What, "was refused:", r.Err, r.Remedy)
	}
}

// A tracker says how it sees what it sees.
func ExampleOpen() {
	t, err := tracker.Open(context.Background(), tracker.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()

	info := t.Info()
	fmt.Println("source:", info.Source)
	for _, h := range info.Hooks {
		fmt.Println("sees", h.Purpose, "by", h.Attach)
	}
	for _, r := range info.Refused {
		fmt.Println(r.What, "was refused:", r.Err, r.Remedy)
	}
	for _, limit := range info.Limits {
		fmt.Println("limit:", limit)
	}
}

// Every connection to or from port 443, until Ctrl-C.
func ExampleTracker_Subscribe() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	t, err := tracker.Open(ctx, tracker.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	sub, err := t.Subscribe(tracker.Filter{Ports: []uint16{443}})
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()

	for e, err := range sub.Events(ctx) {
		if errors.Is(err, context.Canceled) {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		switch e.Type {
		case conn.EventGap:
			fmt.Println(e.Lost, "events were lost")
		case conn.EventFail:
			fmt.Println("process", e.PID, "could not connect to", e.Raddr, "as", e.Error)
		case conn.EventClose:
			if e.Close != nil {
				fmt.Println(e.Laddr, e.Raddr, "carried", e.Close.BytesSent, "and", e.Close.BytesReceived, "bytes; it ended by", e.Close.Reason)
			}
		default:
			fmt.Println(e.Time.Format(time.TimeOnly), e.Type, e.Laddr, e.Raddr, "process", e.PID)
		}
	}
}

// One event at a time, with a time limit.
func ExampleSubscription_Next() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	t, err := tracker.Open(ctx, tracker.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	sub, err := t.Subscribe(tracker.Filter{
		NoSeed: true, // only what happens from now on
		Events: []conn.EventType{conn.EventAccept},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()

	e, err := sub.Next(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		fmt.Println("nobody came")
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(e.Raddr, "was let in by process", e.PID)
}

// The table of a tracker, again and again; the slice is used again too.
func ExampleTracker_AppendConnections() {
	t, err := tracker.Open(context.Background(), tracker.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()

	var conns []conn.Conn
	for range 3 {
		conns, err = t.AppendConnections(conns[:0], conn.KindTCP)
		if err != nil {
			log.Fatal(err)
		}
		established := 0
		for i := range conns {
			if conns[i].Status == conn.StatusEstablished {
				established++
			}
		}
		fmt.Println(established, "connections are established")
		time.Sleep(time.Second)
	}
}

// Whether anything was lost, and where.
func ExampleTracker_Stats() {
	t, err := tracker.Open(context.Background(), tracker.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	time.Sleep(time.Second)

	s := t.Stats()
	fmt.Println(s.Seen, "events were seen,", s.Delivered, "delivered,", s.Lost.Events(), "lost on the way")
	fmt.Println(s.Lost.SlowSubscriber, "events were lost by slow subscribers")
	fmt.Println(s.Connections, "TCP sockets are in the table,", s.Reconciled, "were repaired after a loss")
}
