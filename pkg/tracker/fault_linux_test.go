package tracker_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	ebpflink "github.com/cilium/ebpf/link"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/internal/verify"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
	"github.com/conntrace/conntrace/pkg/tracker"
)

func init() { helpers["tracker"] = helperTracker }

// helperTracker tracks. It answers with the IDs of its programs in the kernel.
func helperTracker(r *bufio.Scanner, w io.Writer) error {
	tr, err := tracker.Open(context.Background(), tracker.Config{Source: tracker.SourceEBPF})
	if err != nil {
		return err
	}
	defer tr.Close()
	for _, h := range tr.Info().Hooks {
		fmt.Fprint(w, h.Program, " ")
	}
	fmt.Fprintln(w)
	for r.Scan() { // until stdin is closed
	}
	return nil
}

// untrue returns what the table of tr, which must be of all namespaces and without
// refreshes, still has wrong once the machine has had time to come to rest.
func untrue(t *testing.T, tr *tracker.Tracker) (wrong []verify.Difference) {
	t.Helper()
	c := verify.Checker{Settle: 3 * time.Second}
	for looks := 0; looks < 2 || c.Pending() > 0 && looks < 40; looks++ {
		l := verify.Look{Time: time.Now()}
		var err error
		if l.Before, err = tr.Connections(conn.KindTCP); err != nil {
			t.Fatal(err)
		}
		snap, err := tracker.TakeSnapshot(t.Context(), tracker.SnapshotConfig{
			Source: tracker.SourceNetlink, Query: fallback.Query{Kind: conn.KindTCP, AllNamespaces: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		l.Kernel, l.Namespaces = snap.Conns, snap.Namespaces
		if l.After, err = tr.Connections(conn.KindTCP); err != nil {
			t.Fatal(err)
		}
		wrong = append(wrong, c.Check(&l)...)
		time.Sleep(200 * time.Millisecond)
	}
	return wrong
}

// TestLosses: under load, with hardly any room for events, most of them are lost, the
// ends of network namespaces among them. Each loss is told, what it left wrong is
// repaired by events that say so, and the account adds up.
func TestLosses(t *testing.T) {
	tr := open(t, tracker.Config{RingBuffer: 1, AllNamespaces: true, Freshness: tracker.NeverRefresh})
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Buffer: 1 << 20})
	server, client := start(t, "server"), start(t, "client")
	address := server.ask("127.0.0.1:0")
	const rounds = 4
	gone := make(map[uint32]bool) // namespaces
	var elsewhere []*process      // all at once: the number of one that is gone may come again
	for range rounds {
		p, netns := startElsewhere(t, "self")
		p.ask("127.0.0.1:0", 50)
		elsewhere, gone[netns] = append(elsewhere, p), true
	}
	for i := range rounds {
		start(t, "self").ask("127.0.0.1:0", 50) // that stay
		fmt.Fprintln(client.in, address, 500)
		elsewhere[i].cmd.Process.Kill()
		elsewhere[i].stop()
		client.ask()
	}

	var wrong []verify.Difference
	eventually(t, "a table that is true again", func() bool {
		wrong = untrue(t, tr)
		return len(wrong) == 0
	})
	eventually(t, "no rows of namespaces that are gone", func() bool {
		rows, err := tr.Connections(conn.KindTCP)
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(rows, func(c conn.Conn) bool {
			return gone[c.NetNS] && c.Status != conn.StatusTimeWait // such are as fresh as the last scan
		})
	})
	server.stop()
	client.stop()
	s.sub.Close() // tells what was lost until now
	var gaps, reconciled uint64
	for _, e := range s.rest(tr) {
		gaps += e.Lost
		if e.Reconciled {
			reconciled++
			if e.Type != conn.EventSeed && e.Type != conn.EventClose {
				t.Errorf("%s was found by a scan", describe(&e))
			}
		}
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	st := tr.Stats()
	if st.Lost.RingFull == 0 || st.Seen != st.Delivered+st.Lost.Events() {
		t.Errorf("account: %+v", st)
	}
	if gaps == 0 || gaps > st.Lost.Events() || reconciled == 0 || reconciled > st.Reconciled {
		t.Errorf("gaps of %d events, %d reconciled; account: %+v", gaps, reconciled, st)
	}
}

// TestGapsAddUp: the gaps that a subscription is told of are all there were.
func TestGapsAddUp(t *testing.T) {
	tr := open(t, tracker.Config{RingBuffer: 1})
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Events: []conn.EventType{conn.EventGap}})
	server, client := start(t, "server"), start(t, "client")
	client.ask(server.ask("127.0.0.1:0"), 1000)
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	var gaps uint64
	for {
		e, err := s.sub.Next(t.Context())
		if err != nil {
			break
		}
		gaps += e.Lost
	}
	if st := tr.Stats(); gaps != st.Lost.Events() || gaps == 0 || st.Seen != st.Delivered+gaps {
		t.Errorf("gaps of %d events; account: %+v", gaps, st)
	}
}

// TestTinyMap: connections beyond MaxConnections are told like any other, and that
// the kernel side could not remember their process is counted.
func TestTinyMap(t *testing.T) {
	const room, n = 4, 20
	tr := open(t, tracker.Config{MaxConnections: room, Freshness: tracker.NeverRefresh})
	server := start(t, "self")
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{server.pid()}})
	listener := netip.MustParseAddrPort(server.ask("127.0.0.1:0", n))
	for range n {
		s.event(conn.EventAccept)
	}
	if st := tr.Stats(); st.Lost.MapFull < n-room || st.Lost.Events() != 0 {
		t.Errorf("account: %+v", st)
	}
	server.cmd.Process.Kill()
	server.stop()
	for closes := 0; closes < n; {
		if e := s.event(conn.EventClose); e.Direction == conn.Inbound && e.Laddr.AddrPort() == listener {
			closes++ // and PIDs has passed it: its process is known
		}
	}
}

// TestKilled: nothing of a tracker that is killed stays in the kernel, and another
// one can take its place.
func TestKilled(t *testing.T) {
	testenv.Root(t)
	last := make(map[uint32]bool)
	for range 2 {
		helper := start(t, "tracker")
		programs := make(map[uint32]bool)
		for _, word := range strings.Fields(helper.ask()) {
			var id uint32
			fmt.Sscan(word, &id)
			if last[id] {
				t.Errorf("program %d is that of a tracker that was killed", id)
			}
			programs[id] = true
		}
		if len(programs) == 0 || !slices.Equal(slices.Sorted(maps.Keys(loaded(t, programs))), slices.Sorted(maps.Keys(programs))) {
			t.Fatalf("programs %v, of which are loaded: %v", programs, loaded(t, programs))
		}
		if linked(t, programs) == 0 {
			t.Fatal("no link has one of these programs")
		}
		helper.cmd.Process.Kill()
		helper.stop()
		eventually(t, "its links and programs gone", func() bool { return linked(t, programs) == 0 && len(loaded(t, programs)) == 0 })
		last = programs
	}
}

// loaded returns which of the programs are in the kernel.
func loaded(t *testing.T, programs map[uint32]bool) map[uint32]bool {
	t.Helper()
	found := make(map[uint32]bool)
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil { // there are no more
			return found
		}
		if id = next; programs[uint32(id)] {
			found[uint32(id)] = true
		}
	}
}

// linked returns how many links have one of the programs.
func linked(t *testing.T, programs map[uint32]bool) (n int) {
	t.Helper()
	it := new(ebpflink.Iterator)
	defer it.Close()
	for it.Next() {
		if info, err := it.Link.Info(); err == nil && programs[uint32(info.Program)] {
			n++
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestTwoTrackers: two trackers see the same, each of them all of it.
func TestTwoTrackers(t *testing.T) {
	const n = 300
	server, client := start(t, "server"), start(t, "client")
	address := netip.MustParseAddrPort(server.ask("127.0.0.1:0"))
	filter := tracker.Filter{NoSeed: true, Ports: []uint16{address.Port()}}
	type seen struct {
		kind   conn.EventType
		cookie uint64
		pid    int32
	}
	var trackers []*tracker.Tracker
	var streams []*stream
	for range 2 {
		tr := open(t, tracker.Config{})
		trackers, streams = append(trackers, tr), append(streams, subscribe(t, tr, filter))
	}
	if got := client.ask(address, n); got != fmt.Sprint(n) {
		t.Fatalf("%s connections of %d", got, n)
	}
	var all [2]map[seen]int
	var wg sync.WaitGroup
	for i := range trackers {
		wg.Go(func() {
			all[i] = make(map[seen]int)
			for range 4 * n {
				e, err := streams[i].sub.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				all[i][seen{e.Type, e.Cookie, e.PID}]++
			}
		})
	}
	wg.Wait()
	if len(all[0]) != 4*n || !maps.Equal(all[0], all[1]) {
		t.Errorf("one sees %d events, the other %d, of %d", len(all[0]), len(all[1]), 4*n)
	}
	for i, tr := range trackers {
		if st := tr.Stats(); st.Lost != (tracker.Lost{}) {
			t.Errorf("tracker %d: %+v", i, st)
		}
	}
}
