package fallback

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
)

// script is a source that gives one snapshot after the other.
type script struct {
	snapshots [][]conn.Conn
	err       error
}

func (s *script) Name() string { return "script" }

func (s *script) Snapshot(ctx context.Context, q Query) (Snapshot, error) {
	if s.err != nil {
		return Snapshot{}, s.err
	}
	next := s.snapshots[0]
	s.snapshots = s.snapshots[1:]
	return Snapshot{Conns: slices.Clone(next)}, nil
}

// A sock makes the row of a TCP socket: local port, remote port, state, inode,
// cookie and owner.
func sock(local, remote uint16, status conn.Status, inode, cookie uint64, pid int32) conn.Conn {
	c := conn.Conn{
		FD: -1, Family: conn.Inet, Type: conn.Stream, Status: status, PID: pid,
		Laddr: conn.AddrIPv4([4]byte{127, 0, 0, 1}, local), Raddr: conn.AddrIPv4([4]byte{127, 0, 0, 1}, remote),
		Inode: inode, Cookie: cookie, Known: conn.KnownInode,
	}
	if cookie != 0 {
		c.Known |= conn.KnownCookie
	}
	if pid != 0 {
		c.FD = 3
	}
	return c
}

// onAll is a listener on every address.
func onAll(c conn.Conn) conn.Conn {
	c.Laddr = conn.AddrIPv4([4]byte{}, c.Laddr.Port())
	return c
}

func describe(events []conn.Event) []string {
	var out []string
	for _, e := range events {
		s := fmt.Sprintf("%v %d", e.Type, e.Laddr.Port())
		if e.Raddr.IsValid() {
			s += fmt.Sprintf("-%d %v", e.Raddr.Port(), e.Direction)
		}
		if e.PID != 0 {
			s += fmt.Sprintf(" of %d", e.PID)
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

func TestPoller(t *testing.T) {
	const (
		established = conn.StatusEstablished
		listen      = conn.StatusListen
		synSent     = conn.StatusSynSent
		synRecv     = conn.StatusSynRecv
		timeWait    = conn.StatusTimeWait
		finWait1    = conn.StatusFinWait1
		finWait2    = conn.StatusFinWait2
	)
	type table = []conn.Conn
	type events = []string
	for _, test := range []struct {
		name   string
		tables []table
		want   []events
	}{
		{
			"seeds",
			[]table{{
				sock(80, 0, listen, 1, 1, 10), sock(80, 5000, established, 2, 2, 10), sock(5000, 80, established, 3, 3, 11),
				sock(5001, 80, synSent, 4, 4, 11), sock(80, 5002, timeWait, 0, 5, 0),
			}, {}},
			[]events{
				{"seed 5000-80 outbound of 11", "seed 5001-80 outbound of 11", "seed 80 of 10", "seed 80-5000 inbound of 10"},
				{"close 5000-80 outbound of 11", "close 80 of 10", "close 80-5000 inbound of 10", "fail 5001-80 outbound of 11"},
			},
		},
		{
			"outbound",
			[]table{{}, {sock(5000, 80, synSent, 1, 1, 10)}, {sock(5000, 80, established, 1, 1, 10)}, {sock(5000, 80, established, 1, 1, 10)}, {}},
			[]events{nil, nil, {"connect 5000-80 outbound of 10"}, nil, {"close 5000-80 outbound of 10"}},
		},
		{
			"failed",
			[]table{{}, {sock(5000, 80, synSent, 1, 1, 10)}, {}, {}},
			[]events{nil, nil, {"fail 5000-80 outbound of 10"}, nil},
		},
		{
			"tried again from the same port",
			[]table{{sock(5000, 80, synSent, 1, 1, 10)}, {sock(5000, 80, synSent, 2, 2, 10)}, {sock(5000, 80, established, 2, 2, 10)}},
			[]events{{"seed 5000-80 outbound of 10"}, {"fail 5000-80 outbound of 10"}, {"connect 5000-80 outbound of 10"}},
		},
		{
			"inbound: request, queue, accepted, orphaned, TIME_WAIT",
			[]table{
				{onAll(sock(80, 0, listen, 1, 1, 10))},
				{onAll(sock(80, 0, listen, 1, 1, 10)), sock(80, 5000, synRecv, 0, 2, 0)},
				{onAll(sock(80, 0, listen, 1, 1, 10)), sock(80, 5000, established, 0, 2, 0)},
				{onAll(sock(80, 0, listen, 1, 1, 10)), sock(80, 5000, established, 7, 2, 10)},
				{sock(80, 5000, finWait1, 0, 2, 0)},
				{sock(80, 5000, timeWait, 0, 9, 0)},
				{sock(80, 5000, timeWait, 0, 9, 0)},
				{},
			},
			[]events{
				{"seed 80 of 10"}, nil, nil, {"accept 80-5000 inbound of 10"},
				{"close 80 of 10"}, {"close 80-5000 inbound of 10"}, nil, nil,
			},
		},
		{
			"the same without cookies",
			[]table{
				{onAll(sock(80, 0, listen, 1, 0, 10))},
				{onAll(sock(80, 0, listen, 1, 0, 10)), sock(80, 5000, synRecv, 0, 0, 0)},
				{onAll(sock(80, 0, listen, 1, 0, 10)), sock(80, 5000, established, 0, 0, 0)},
				{onAll(sock(80, 0, listen, 1, 0, 10)), sock(80, 5000, established, 7, 0, 10)},
				{sock(80, 5000, finWait2, 0, 0, 0)},
				{sock(80, 5000, timeWait, 0, 0, 0)},
				{},
			},
			[]events{
				{"seed 80 of 10"}, nil, nil, {"accept 80-5000 inbound of 10"},
				{"close 80 of 10"}, {"close 80-5000 inbound of 10"}, nil,
			},
		},
		{
			"replaced by a socket of TIME_WAIT",
			[]table{{sock(5000, 80, established, 1, 1, 10)}, {sock(5000, 80, timeWait, 0, 2, 0)}, {sock(5000, 80, timeWait, 0, 2, 0)}, {}},
			[]events{{"seed 5000-80 outbound of 10"}, {"close 5000-80 outbound of 10"}, nil, nil},
		},
		{
			"never accepted",
			[]table{{sock(80, 0, listen, 1, 1, 10)}, {sock(80, 0, listen, 1, 1, 10), sock(80, 5000, established, 0, 2, 0)}, {sock(80, 0, listen, 1, 1, 10)}},
			[]events{{"seed 80 of 10"}, nil, {"close 80-5000 inbound"}},
		},
		{
			"seen in TIME_WAIT only; the listener is gone",
			[]table{{sock(80, 0, listen, 1, 1, 10)}, {sock(80, 5000, timeWait, 0, 2, 0), sock(5001, 443, timeWait, 0, 3, 0)}, {}},
			[]events{{"seed 80 of 10"}, {"close 5001-443 outbound", "close 80 of 10", "close 80-5000 inbound"}, nil},
		},
		{
			"the same tuple again",
			[]table{{sock(5000, 80, established, 1, 1, 10)}, {sock(5000, 80, established, 2, 2, 11)}, {sock(5000, 80, timeWait, 0, 3, 0)}, {sock(5000, 80, established, 4, 4, 12)}},
			[]events{
				{"seed 5000-80 outbound of 10"}, {"close 5000-80 outbound of 10", "connect 5000-80 outbound of 11"},
				{"close 5000-80 outbound of 11"}, {"connect 5000-80 outbound of 12"},
			},
		},
		{
			"the same tuple again, without cookies",
			[]table{{sock(5000, 80, established, 1, 0, 10)}, {sock(5000, 80, established, 2, 0, 11)}},
			[]events{{"seed 5000-80 outbound of 10"}, {"close 5000-80 outbound of 10", "connect 5000-80 outbound of 11"}},
		},
		{
			"listeners that share a port",
			[]table{{}, {sock(80, 0, listen, 1, 1, 10)}, {sock(80, 0, listen, 1, 1, 10), sock(80, 0, listen, 2, 2, 11)}, {sock(80, 0, listen, 2, 2, 11)}},
			[]events{nil, {"listen 80 of 10"}, {"listen 80 of 11"}, {"close 80 of 10"}},
		},
		{
			"twice in a table that changed",
			[]table{{}, {sock(5000, 80, established, 1, 1, 10), sock(5000, 80, timeWait, 0, 2, 0)}, {sock(5000, 80, timeWait, 0, 2, 0)}},
			[]events{nil, {"close 5000-80 outbound of 10", "connect 5000-80 outbound of 10"}, nil},
		},
		{
			"passed to another process",
			[]table{{sock(5000, 80, established, 1, 1, 10)}, {sock(5000, 80, established, 1, 1, 0)}, {sock(5000, 80, established, 1, 1, 20)}, {}},
			[]events{{"seed 5000-80 outbound of 10"}, nil, nil, {"close 5000-80 outbound of 20"}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := NewPoller(&script{snapshots: test.tables}, Query{Kind: conn.KindAll})
			for i, want := range test.want {
				events, err := p.Poll(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if got := describe(events); !slices.Equal(got, want) {
					t.Errorf("poll %d: got %q, want %q", i, got, want)
				}
				for _, e := range events {
					ends := e.Type == conn.EventClose || e.Type == conn.EventFail
					if e.Time.IsZero() || ends != (e.Status == conn.StatusClose) || e.Close != nil || e.Error != 0 {
						t.Errorf("poll %d: got %+v", i, e)
					}
				}
			}
		})
	}
}

// A close event is of the socket that its connect event was of.
func TestPollerCookie(t *testing.T) {
	p := NewPoller(&script{snapshots: [][]conn.Conn{
		{}, {sock(5000, 80, conn.StatusEstablished, 1, 1, 10)}, {sock(5000, 80, conn.StatusTimeWait, 0, 2, 0)},
	}}, Query{Kind: conn.KindTCP})
	for range 2 {
		if _, err := p.Poll(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	events, err := p.Poll(context.Background())
	if err != nil || len(events) != 1 || events[0].Cookie != 1 || events[0].Inode != 1 || events[0].FD != 3 {
		t.Errorf("got %+v, %v", events, err)
	}
}

// Sockets of two namespaces are not the same, and a listener is of its own only.
func TestPollerNamespaces(t *testing.T) {
	there := sock(80, 5000, conn.StatusEstablished, 2, 2, 11)
	there.NetNS = 2
	here := sock(80, 5000, conn.StatusEstablished, 3, 3, 10)
	p := NewPoller(&script{snapshots: [][]conn.Conn{{sock(80, 0, conn.StatusListen, 1, 1, 10), here, there}}}, Query{Kind: conn.KindTCP})
	events, err := p.Poll(context.Background())
	want := []string{"seed 80 of 10", "seed 80-5000 inbound of 10", "seed 80-5000 unknown of 11"}
	if got := describe(events); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
}

// A poll that fails changes nothing.
func TestPollerError(t *testing.T) {
	src := &script{snapshots: [][]conn.Conn{{}, {sock(80, 0, conn.StatusListen, 1, 1, 10)}}}
	p := NewPoller(src, Query{Kind: conn.KindTCP})
	if _, err := p.Poll(context.Background()); err != nil {
		t.Fatal(err)
	}
	src.err = errors.New("out of order")
	if _, err := p.Poll(context.Background()); !errors.Is(err, src.err) {
		t.Errorf("got %v", err)
	}
	src.err = nil
	events, err := p.Poll(context.Background())
	if got := describe(events); err != nil || !slices.Equal(got, []string{"listen 80 of 10"}) {
		t.Errorf("got %q, %v", got, err)
	}
}

func BenchmarkPoller(b *testing.B) {
	rows := make([]conn.Conn, 20_000)
	for i := range rows {
		rows[i] = sock(uint16(i)+1, 80, conn.StatusEstablished, uint64(i)+1, uint64(i)+1, 10)
	}
	p := NewPoller(&script{snapshots: slices.Repeat([][]conn.Conn{rows}, 100_000)}, Query{Kind: conn.KindTCP})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Poll(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
