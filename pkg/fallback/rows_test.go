package fallback

import (
	"fmt"
	"slices"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A row is psutil's seven fields.
type row struct {
	fd           int32
	family       conn.Family
	typ          conn.Type
	laddr, raddr conn.Addr
	status       conn.Status
	pid          int32
}

func rowOf(c conn.Conn) row {
	return row{c.FD, c.Family, c.Type, c.Laddr, c.Raddr, c.Status, c.PID}
}

func held(inode uint64, pidsAndFDs ...int32) (holders []Holding) {
	for i := 0; i < len(pidsAndFDs); i += 2 {
		holders = append(holders, Holding{inode, conn.Holder{PID: pidsAndFDs[i], FD: pidsAndFDs[i+1]}})
	}
	return holders
}

func joinAll(conns []conn.Conn, holders []Holding, q Query) []conn.Conn {
	var index holderIndex
	index.build(holders, q.PID)
	return join(conns, &index, q)
}

func TestJoin(t *testing.T) {
	addr := func(port uint16) conn.Addr { return conn.AddrIPv4([4]byte{127, 0, 0, 1}, port) }
	tcp := func(port uint16, inode uint64) conn.Conn {
		return conn.Conn{Family: conn.Inet, Type: conn.Stream, Laddr: addr(port), Status: conn.StatusListen, Inode: inode}
	}
	local := conn.Conn{Family: conn.Unix, Type: conn.Stream, Laddr: conn.AddrUnix("/s"), Raddr: conn.AddrUnix(""), Inode: 8}
	// Process 10 holds the TCP socket 7 as 3, the process 20 as 4 and 5; and the unix
	// socket 8 as 6 and 7.
	holders := slices.Concat(held(7, 10, 3, 20, 4, 20, 5), held(8, 20, 6, 20, 7))
	type own struct{ pid, fd int32 }
	for _, test := range []struct {
		name  string
		conns []conn.Conn
		query Query
		want  []own
	}{
		{"nothing", nil, Query{}, nil},
		{"highest pid, lowest descriptor", []conn.Conn{tcp(1, 7)}, Query{}, []own{{20, 4}}},
		{"one process", []conn.Conn{tcp(1, 7), local}, Query{PID: 10}, []own{{10, 3}}},
		{"another process", []conn.Conn{tcp(1, 7)}, Query{PID: 20}, []own{{20, 4}}},
		{"no such holder", []conn.Conn{tcp(1, 7), tcp(2, 0)}, Query{PID: 15}, nil},
		{"unix", []conn.Conn{local, tcp(1, 7)}, Query{}, []own{{20, 6}, {20, 4}, {20, 7}}},
		{"nobody's", []conn.Conn{tcp(1, 0), tcp(2, 99)}, Query{}, []own{{0, -1}, {0, -1}}},
		{"nobody's, equal", []conn.Conn{tcp(1, 50), tcp(1, 51), tcp(1, 0)}, Query{}, []own{{0, -1}}},
		{"listed twice", []conn.Conn{tcp(1, 7), local, tcp(1, 7), local}, Query{}, []own{{20, 4}, {20, 6}, {20, 7}}},
		{"MPTCP subflows", []conn.Conn{tcp(1, 7), tcp(2, 7)}, Query{}, []own{{20, 4}, {20, 4}}},
	} {
		var got []own
		for _, c := range joinAll(slices.Clone(test.conns), holders, test.query) {
			got = append(got, own{c.PID, c.FD})
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

func TestJoinHolders(t *testing.T) {
	holders := slices.Concat(held(7, 10, 3), held(8, 15, 1), held(7, 20, 4, 20, 5))
	conns := []conn.Conn{
		{Family: conn.Inet, Type: conn.Stream, Laddr: conn.AddrIPv4([4]byte{}, 1), Inode: 7},
		{Family: conn.Inet, Type: conn.Stream, Laddr: conn.AddrIPv4([4]byte{}, 2), Inode: 99},
	}
	rows := joinAll(conns, holders, Query{Holders: true})
	want := []conn.Holder{{PID: 10, FD: 3}, {PID: 20, FD: 4}, {PID: 20, FD: 5}}
	if !rows[0].Known.Has(conn.KnownHolders) || !slices.Equal(rows[0].Holders, want) {
		t.Errorf("got %v, want %v", rows[0].Holders, want)
	}
	if rows[1].Known.Has(conn.KnownHolders) || rows[1].Holders != nil {
		t.Errorf("of nobody's socket: got %v", rows[1].Holders)
	}
	if rows := joinAll(rows[:1], holders, Query{}); rows[0].PID != 20 {
		t.Errorf("got %+v", rows[0])
	}
}

// No two rows are equal: neither sockets without an owner that look alike, nor one
// that a table lists twice. Sockets of different namespaces are never the same.
func TestNoDoubles(t *testing.T) {
	a := conn.Conn{Family: conn.Inet, Type: conn.Stream, Laddr: conn.AddrIPv4([4]byte{}, 1), NetNS: 1}
	elsewhere := a
	elsewhere.NetNS = 2
	other := a
	other.Cookie, other.Inode, other.UID = 5, 6, 7
	owned := a
	owned.Inode = 7
	subflow := owned // of the same MPTCP socket
	subflow.Raddr = conn.AddrIPv4([4]byte{}, 2)
	local := conn.Conn{Family: conn.Unix, Type: conn.Stream, Laddr: conn.AddrUnix(""), Inode: 8}
	holders := slices.Concat(held(7, 10, 3), held(8, 10, 4, 10, 5))

	got := joinAll([]conn.Conn{a, owned, elsewhere, local, other, owned, subflow, owned, local, elsewhere, a}, holders, Query{})
	var rows []string
	for _, c := range got {
		rows = append(rows, fmt.Sprint(c.NetNS, c.Inode, c.FD, c.Raddr))
	}
	slices.Sort(rows)
	if want := []string{"0 8 4 ", "0 8 5 ", "1 0 -1 ", "1 7 3 ", "1 7 3 0.0.0.0:2", "2 0 -1 "}; !slices.Equal(rows, want) {
		t.Errorf("got %q, want %q", rows, want)
	}
}

func BenchmarkJoinUnowned(b *testing.B) {
	rows := make([]conn.Conn, 100_000)
	for i := range rows {
		rows[i] = conn.Conn{
			FD: -1, Family: conn.Inet, Type: conn.Stream, Status: conn.StatusTimeWait,
			Laddr: conn.AddrIPv4([4]byte{10, 0, byte(i >> 16)}, uint16(i|1)),
			Raddr: conn.AddrIPv4([4]byte{10, 0, 0, byte(i)}, 443),
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		joinAll(rows, nil, Query{Kind: conn.KindTCP})
	}
}
