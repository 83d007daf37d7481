package tracker_test

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"go.uber.org/goleak"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestNoneMissing: many short connections between two processes, each told once
// on both ends, with the right process, and the account adds up.
func TestNoneMissing(t *testing.T) {
	const n = 2000
	tr := open(t, tracker.Config{})
	if attached(tr, "tracepoint/sock/inet_sock_set_state") {
		if !limited(tr, "softirq") {
			t.Errorf("a hook that misses states in softirqs, and does not say so: %q", tr.Info().Limits)
		}
		t.Skip("this hook misses some")
	}
	defer func() {
		if t.Failed() {
			t.Logf("account: %+v", tr.Stats())
		}
	}()
	server, client := start(t, "server"), start(t, "client")
	address := netip.MustParseAddrPort(server.ask("127.0.0.1:0"))
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: []uint16{address.Port()}})
	if ok := client.ask(address, n); ok != fmt.Sprint(n) {
		t.Fatalf("%s connections of %d", ok, n)
	}

	// Some kernels run no BPF programs while certain tasks are current, and tell nobody:
	// what a softirq does there is found by the next look at the kernel's tables.
	time.Sleep(time.Second + 100*time.Millisecond) // Config.Freshness
	if _, err := tr.Connections(conn.KindTCP); err != nil {
		t.Fatal(err)
	}

	type end struct {
		kind        conn.EventType
		cookie      uint64 // ports are used again
		local, peer conn.Addr
	}
	seen, repaired := make(map[end]int), 0
	for range 4 * n {
		e := s.next("event", func(*conn.Event) bool { return true })
		want := server.pid()
		if e.Direction == conn.Outbound {
			want = client.pid()
		}
		if e.PID != want || e.Process == nil || e.FD < 0 && (e.Direction == conn.Outbound || acceptedFD(tr, 0) == 0) {
			t.Fatalf("%s of the %s end has pid %d, fd %d, want pid %d", e.Type, e.Direction, e.PID, e.FD, want)
		}
		if (e.Type == conn.EventConnect) != (e.Direction == conn.Outbound) && e.Type != conn.EventClose {
			t.Fatalf("%s %s", e.Direction, e.Type)
		}
		seen[end{e.Type, e.Cookie, e.Laddr, e.Raddr}]++
		if e.Reconciled {
			repaired++
		}
	}
	if repaired > n/20 {
		t.Errorf("%d of %d events were found by looking", repaired, 4*n)
	}
	counts := make(map[conn.EventType]int)
	for k, times := range seen {
		counts[k.kind]++
		if times != 1 {
			t.Errorf("%s of %s -> %s was told %d times", k.kind, k.local, k.peer, times)
		}
	}
	if counts[conn.EventConnect] != n || counts[conn.EventAccept] != n || counts[conn.EventClose] != 2*n {
		t.Errorf("%v, want %d connects, %d accepts, %d closes", counts, n, n, 2*n)
	}
	for _, e := range s.rest(tr) {
		t.Errorf("and then %s", describe(&e))
	}
	if st := tr.Stats(); st.Lost != (tracker.Lost{}) {
		t.Errorf("account: %+v", st)
	}
	eventually(t, "an account that adds up", func() bool { // others may open connections meanwhile
		st := tr.Stats()
		return st.Seen == st.Delivered
	})
}

// TestTinyRingBuffer: what does not fit is counted and told, and the table is true
// again afterwards.
func TestTinyRingBuffer(t *testing.T) {
	tr := open(t, tracker.Config{RingBuffer: 1})
	s := subscribe(t, tr, tracker.Filter{NoSeed: true})
	l, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var pairs []pair
	for range 200 {
		pairs = append(pairs, dial(t, l, "tcp4", l.Addr().String()))
	}
	e := s.event(conn.EventGap)
	if e.Lost == 0 {
		t.Error("a gap of nothing")
	}
	for _, p := range pairs[100:] {
		p.client.Close()
		p.server.Close()
	}
	eventually(t, "a table of 100 connections and their listener", func() bool {
		rows, err := tr.Connections(conn.KindTCP4)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, r := range rows {
			if (r.Laddr == addr(l.Addr()) || r.Raddr == addr(l.Addr())) && r.Status != conn.StatusTimeWait {
				n++
				if r.PID != int32(os.Getpid()) {
					return false
				}
			}
		}
		return n == 201
	})
	if st := tr.Stats(); st.Lost.RingFull == 0 || st.Reconciled == 0 {
		t.Errorf("account: %+v", st)
	}
	eventually(t, "an account that adds up", func() bool { // others may open connections meanwhile
		st := tr.Stats()
		return st.Seen == st.Delivered+st.Lost.RingFull
	})
}

// TestSlowSubscriber: one that does not read loses events, is told how many, and
// hinders nobody else.
func TestSlowSubscriber(t *testing.T) {
	tr := open(t, tracker.Config{})
	slow := subscribe(t, tr, tracker.Filter{NoSeed: true, Buffer: 10})
	fast := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{int32(os.Getpid())}})
	for range 20 {
		p := connect(t, "tcp4", "127.0.0.1:0")
		p.client.Close()
		p.server.Close()
		p.listener.Close()
	}
	for range 20 {
		for range 3 {
			fast.event(conn.EventClose)
		}
	}
	var got, gap uint64
	for _, e := range slow.rest(tr) {
		if e.Type == conn.EventGap {
			gap += e.Lost
		} else {
			got++
		}
	}
	if got != 10 || gap == 0 || gap != slow.sub.Lost() || gap != tr.Stats().Lost.SlowSubscriber {
		t.Errorf("%d events and a gap of %d, Lost says %d, Stats %+v", got, gap, slow.sub.Lost(), tr.Stats().Lost)
	}
}

// TestClose: nothing stays behind, in the process or in the kernel.
func TestClose(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	descriptors := countDescriptors(t)
	tr := open(t, tracker.Config{})
	sub, err := tr.Subscribe(tracker.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	hooks := tr.Info().Hooks
	if len(hooks) == 0 {
		t.Fatal("no hooks")
	}
	for _, h := range hooks {
		if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(h.Program)); err != nil {
			t.Errorf("%s is not in the kernel: %v", h.Attach, err)
		} else {
			p.Close()
		}
	}

	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { // whatever runs must end
			for {
				_, err1 := tr.Connections(conn.KindInet)
				_, err2 := tr.Subscribe(tracker.Filter{NoSeed: true})
				tr.Stats()
				if err1 != nil && err2 != nil {
					return
				}
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	for range 2 {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	for {
		if _, err := sub.Next(t.Context()); err != nil {
			break
		}
	}
	// The kernel frees programs after a grace period.
	for _, h := range hooks {
		eventually(t, h.Attach+" gone from the kernel", func() bool {
			p, err := ebpf.NewProgramFromID(ebpf.ProgramID(h.Program))
			if err == nil {
				p.Close()
			}
			return err != nil
		})
	}
	if n := countDescriptors(t); n > descriptors {
		t.Errorf("%d descriptors before, %d after", descriptors, n)
	}
}

func countDescriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
