package tracker_test

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestResetWhileAccepted: a connection that its peer resets while it is being
// accepted is told as both, in either order, and is in the table no more. Who replays
// the events has none left, either.
func TestResetWhileAccepted(t *testing.T) {
	const n = 3000
	tr := open(t, tracker.Config{Freshness: tracker.NeverRefresh})
	server := start(t, "server")
	address := server.ask("127.0.0.1:0")
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{server.pid()}, Events: []conn.EventType{conn.EventAccept}})
	closed := subscribe(t, tr, tracker.Filter{NoSeed: true, Direction: conn.Inbound})
	for range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0) // nothing but a RST
		c.Close()
	}

	// A reset that meets the handshake may leave nothing to accept (tcp_check_req()).
	accepted, last := 0, -1
	for accepted != last { // the server may be behind
		time.Sleep(500 * time.Millisecond)
		last = accepted
		fmt.Sscan(server.ask("accepted"), &accepted)
	}
	if got := len(s.rest(tr)); got != accepted || accepted < n/2 {
		t.Errorf("%d accepts were told, of %d; account: %+v", got, accepted, tr.Stats())
	}
	eventually(t, "a table without these connections", func() bool {
		rows, err := tr.Connections(conn.KindTCP4)
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(rows, func(r conn.Conn) bool { return r.Laddr.String() == address && r.Raddr.IsValid() })
	})
	open, taken := make(map[uint64]bool), make(map[uint64]bool)
	for _, e := range closed.rest(tr) {
		if e.Laddr.String() == address {
			open[e.Cookie] = e.Type == conn.EventAccept && e.Status != conn.StatusClose
			taken[e.Cookie] = taken[e.Cookie] || e.Type == conn.EventAccept
		}
	}
	maps.DeleteFunc(taken, func(_ uint64, accepted bool) bool { return !accepted })
	for cookie, left := range open {
		if left {
			t.Errorf("no close of the socket with cookie %d after its accept", cookie)
		}
	}
	if len(taken) != accepted || len(open) > n {
		t.Errorf("%d connections were told of, %d as accepted, of %d that were", len(open), len(taken), accepted)
	}
	if st := tr.Stats(); st.Lost.Events() != 0 {
		t.Errorf("account: %+v", st)
	}
}
