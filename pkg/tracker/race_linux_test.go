package tracker_test

import (
	"net"
	"slices"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestResetWhileAccepted: a connection that its peer resets while it is being
// accepted is told as both, in either order, and is in the table no more.
func TestResetWhileAccepted(t *testing.T) {
	const n = 3000
	tr := open(t, tracker.Config{Freshness: tracker.NeverRefresh})
	server := start(t, "server")
	address := server.ask("127.0.0.1:0")
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{server.pid()}, Events: []conn.EventType{conn.EventAccept}})
	accepted := make(chan int, 1)
	go func() {
		n := 0
		for range s.sub.Events(t.Context()) {
			n++
		}
		accepted <- n
	}()
	for range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0) // nothing but a RST
		c.Close()
	}

	eventually(t, "a table without these connections", func() bool {
		rows, err := tr.Connections(conn.KindTCP4)
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(rows, func(r conn.Conn) bool { return r.Laddr.String() == address && r.Raddr.IsValid() })
	})
	s.sub.Close()
	if got := <-accepted; got != n {
		t.Errorf("%d accepts were told, of %d", got, n)
	}
	if st := tr.Stats(); st.Lost.Events() != 0 {
		t.Errorf("account: %+v", st)
	}
}
