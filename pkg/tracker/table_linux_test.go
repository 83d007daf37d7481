package tracker

import (
	"testing"
	"time"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// applyTo brings a record of the socket with the cookie into the table. It returns the
// event that is to be published, false if none is.
func applyTo(t *testing.T, table *table, kind bpf.TrackerEventType, cookie uint64, change func(o *wireOwned)) (e conn.Event, told bool) {
	t.Helper()
	c := wireClose{}
	c.Owned.Socket.Header.Type = uint8(kind)
	c.Owned.Socket.Header.Family = uint8(conn.Inet)
	c.Owned.Socket.Header.Cookie = cookie
	c.Owned.Socket.Header.Time = 1
	if change != nil {
		change(&c.Owned)
	}
	r, err := decode(bytesOf(&c)[:recordSizes[kind]])
	if err != nil {
		t.Fatal(err)
	}
	told = table.apply(r, nil, time.Now(), &e)
	return e, told
}

// TestAcceptOnce: an accept is told once, whichever programs report it, and a possible
// one only of a child that waits to be accepted.
func TestAcceptOnce(t *testing.T) {
	const child, seeded = 7, 8
	table := newTable()
	table.merge(&fallback.Snapshot{Conns: []conn.Conn{{
		Type: conn.Stream, Family: conn.Inet, Status: conn.StatusEstablished, Cookie: seeded, FD: -1, Known: conn.KnownCookie,
	}}}, table.beginScan(), time.Now(), func(*conn.Event) {})

	for _, step := range []struct {
		what   string
		kind   bpf.TrackerEventType
		cookie uint64
		told   bool
	}{
		{"of a socket that nobody knows", bpf.TrackerEventTypeEVENT_MAYBE_ACCEPT, child, false},
		{"of one that was there before", bpf.TrackerEventTypeEVENT_MAYBE_ACCEPT, seeded, false},
		{"", bpf.TrackerEventTypeEVENT_CHILD, child, false},
		{"of a child", bpf.TrackerEventTypeEVENT_MAYBE_ACCEPT, child, true},
		{"of a child that has been accepted", bpf.TrackerEventTypeEVENT_MAYBE_ACCEPT, child, false},
		{"of a child that has been accepted", bpf.TrackerEventTypeEVENT_ACCEPT, child, false},
		{"", bpf.TrackerEventTypeEVENT_CHILD, child + 2, false},
		{"of a child", bpf.TrackerEventTypeEVENT_ACCEPT, child + 2, true},
		{"of a child that has been accepted", bpf.TrackerEventTypeEVENT_ACCEPT, child + 2, false},
		{"before the child is established", bpf.TrackerEventTypeEVENT_ACCEPT, child + 3, true},
		{"", bpf.TrackerEventTypeEVENT_CHILD, child + 3, false},
		{"of a child that has been accepted", bpf.TrackerEventTypeEVENT_ACCEPT, child + 3, false},
	} {
		e, told := applyTo(t, table, step.kind, step.cookie, nil)
		if told != step.told || told && (e.Type != conn.EventAccept || e.Direction != conn.Inbound) {
			t.Errorf("accept %s: told: %t, %s %s", step.what, told, e.Direction, e.Type)
		}
	}
}

// TestAbsentNamespace: what was in a network namespace leaves the table with it,
// although no scan reads one that is gone; and stays as long as there is a sign of it.
func TestAbsentNamespace(t *testing.T) {
	const home, there = 1, 2
	listening := func(netns uint32) func(o *wireOwned) {
		return func(o *wireOwned) {
			o.Socket.Header.Netns = netns
			o.Socket.Header.Newstate = uint8(conn.StatusListen)
		}
	}
	const inode = 77
	for _, tt := range []struct {
		name   string
		scan   fallback.Snapshot // the second one
		later  time.Duration     // than the first one
		change bool              // an event in between
		gone   bool
	}{
		{name: "gone", scan: fallback.Snapshot{Strays: []uint64{5}}, later: farewell, gone: true},
		{name: "too early", scan: fallback.Snapshot{Strays: []uint64{5}}, later: farewell - 1},
		{name: "no scan for strays", scan: fallback.Snapshot{}, later: farewell},
		{name: "held", scan: fallback.Snapshot{Strays: []uint64{5, inode}}, later: farewell},
		{name: "holders hidden", scan: fallback.Snapshot{Strays: []uint64{5}, Hidden: 1}, later: farewell},
		{name: "changed", scan: fallback.Snapshot{Strays: []uint64{5}}, later: farewell, change: true},
		{name: "read", scan: fallback.Snapshot{Namespaces: []uint32{there}}, gone: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := newTable()
			applyTo(t, table, bpf.TrackerEventTypeEVENT_LISTEN, 10, listening(home))
			applyTo(t, table, bpf.TrackerEventTypeEVENT_LISTEN, 20, listening(there))
			applyTo(t, table, bpf.TrackerEventTypeEVENT_LISTEN, 21, listening(there))
			table.sockets[20].row.Inode = inode
			kept := fallback.Snapshot{
				Namespaces: []uint32{home}, Strays: []uint64{},
				Conns: []conn.Conn{{Cookie: 10, NetNS: home, Status: conn.StatusListen, FD: -1}},
			}
			var closed []uint64
			merge := func(snap fallback.Snapshot, at time.Time, event bool) {
				start := table.beginScan()
				if event {
					applyTo(t, table, bpf.TrackerEventTypeEVENT_CLOSE, 21, listening(there))
					applyTo(t, table, bpf.TrackerEventTypeEVENT_LISTEN, 22, listening(there))
				}
				table.merge(&snap, start, at, func(e *conn.Event) {
					if e.Type != conn.EventClose || !e.Reconciled || e.NetNS != there {
						t.Errorf("%+v", e)
					}
					closed = append(closed, e.Cookie)
				})
			}
			now := time.Now()
			merge(kept, now, false)
			if len(closed) > 0 {
				t.Fatalf("at first sight, %d are closed", closed)
			}
			tt.scan.Conns, tt.scan.Namespaces = kept.Conns, append(tt.scan.Namespaces, home)
			merge(tt.scan, now.Add(tt.later), tt.change)
			wantClosed, wantLeft := 0, 3
			if tt.gone {
				wantClosed, wantLeft = 2, 1
			}
			if len(closed) != wantClosed || len(table.sockets) != wantLeft || table.sockets[10] == nil {
				t.Errorf("%d are closed, %d sockets left", closed, len(table.sockets))
			}
		})
	}
}

// TestNameless: sockets without a cookie make events, each its own, and no entries:
// the next call of Connections looks for them.
func TestNameless(t *testing.T) {
	for kind, want := range map[bpf.TrackerEventType]conn.EventType{
		bpf.TrackerEventTypeEVENT_LISTEN:    conn.EventListen,
		bpf.TrackerEventTypeEVENT_CONNECT:   conn.EventConnect,
		bpf.TrackerEventTypeEVENT_ACCEPT:    conn.EventAccept,
		bpf.TrackerEventTypeEVENT_FAIL:      conn.EventFail,
		bpf.TrackerEventTypeEVENT_FAIL_CALL: conn.EventFail,
		bpf.TrackerEventTypeEVENT_CLOSE:     conn.EventClose,
	} {
		table := newTable()
		for _, port := range []uint16{80, 443} {
			e, told := applyTo(t, table, kind, 0, func(o *wireOwned) { o.Socket.Lport = port })
			if !told || e.Type != want || e.Laddr.Port() != port || e.Known.Has(conn.KnownCookie) {
				t.Errorf("%d: %+v, want a %s event of port %d", kind, e, want, port)
			}
		}
		opens := want == conn.EventListen || want == conn.EventConnect || want == conn.EventAccept
		if len(table.sockets) != 0 || table.holders.stale != opens {
			t.Errorf("%d: %d sockets in the table, stale: %t", kind, len(table.sockets), table.holders.stale)
		}
	}
}

// TestStateWords: a word is its socket's only; the sum of several, which is there
// while two of them claim a place at once (state_note), is nobody's.
func TestStateWords(t *testing.T) {
	const mark, size = 1 << 51, 4
	word := func(cookie, state uint64) uint64 { return (mark|cookie)<<5 | state }
	for _, tt := range []struct {
		word   uint64
		cookie uint64
		ok     bool
	}{
		{0, 4, false},
		{word(4, 8), 4, true},
		{word(4, 8), 8, false},
		{word(4, 8) + word(8, 9), 4, false},
		{word(4, 8) + word(8, 9), 8, false},
		{word(4, 8) + word(8, 9), 12, false}, // the sum of their cookies
		{word(3, 16|11) + word(7, 16|11), 11, false},
		{word(4, 8) + word(8, 9) + word(12, 4), 24, false},
	} {
		s := stateWords{words: make([]uint64, size)}
		s.words[tt.cookie%size] = tt.word
		if status, orphan, ok := s.of(tt.cookie); ok != tt.ok || ok && (status != conn.StatusCloseWait || orphan) {
			t.Errorf("word %#x of cookie %d: %s, %t, %t", tt.word, tt.cookie, status, orphan, ok)
		}
	}
}
