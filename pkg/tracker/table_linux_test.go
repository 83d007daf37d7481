package tracker

import (
	"testing"
	"time"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/pkg/conn"
)

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
			c := wireClose{}
			c.Owned.Socket.Header.Type = uint8(kind)
			c.Owned.Socket.Header.Family = uint8(conn.Inet)
			c.Owned.Socket.Lport = port
			r, err := decode(bytesOf(&c)[:recordSizes[kind]])
			if err != nil {
				t.Fatal(err)
			}
			var e conn.Event
			if !table.apply(r, nil, time.Now(), &e) || e.Type != want || e.Laddr.Port() != port || e.Known.Has(conn.KnownCookie) {
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
