package tracker_test

import (
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestReadYourWrites: a connection that was established before the call of
// Connections is in its answer, and one that was closed is not.
func TestReadYourWrites(t *testing.T) {
	tr := open(t, tracker.Config{Freshness: tracker.NeverRefresh})
	l, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var rows []conn.Conn
	find := func(laddr, raddr conn.Addr) *conn.Conn {
		t.Helper()
		if rows, err = tr.AppendConnections(rows[:0], conn.KindTCP); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(rows, func(c conn.Conn) bool {
			return c.Laddr == laddr && c.Raddr == raddr && c.Status == conn.StatusEstablished
		})
		if i < 0 {
			return nil
		}
		return &rows[i]
	}
	for range 200 {
		p := dial(t, l, "tcp4", l.Addr().String())
		local, remote := addr(p.client.LocalAddr()), addr(p.client.RemoteAddr())
		for _, end := range []struct {
			laddr, raddr conn.Addr
			fd           int32
		}{{local, remote, fdOf(t, p.client)}, {remote, local, acceptedFD(tr, fdOf(t, p.server))}} {
			if r := find(end.laddr, end.raddr); r == nil || r.PID != int32(os.Getpid()) || r.FD != end.fd {
				t.Fatalf("%s -> %s: %+v", end.laddr, end.raddr, r)
			}
		}
		p.client.Close()
		p.server.Close()
		if r := find(local, remote); r != nil {
			t.Fatalf("closed, but %+v", r)
		}
	}
}

// TestConnections: once sockets stop changing, the table gives the rows of an exact
// scan, whatever came before.
func TestConnections(t *testing.T) {
	worker := start(t, "worker", func() *os.File {
		l, err := listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}())
	existing, err := net.Dial("tcp4", worker.ask())
	if err != nil {
		t.Fatal(err)
	}
	defer existing.Close()

	tr := open(t, tracker.Config{Freshness: tracker.AlwaysExact})
	p := connect(t, "tcp6", "[::1]:0")
	halfClosed := connect(t, "tcp4", "127.0.0.1:0")
	halfClosed.client.CloseWrite()
	read(t, halfClosed.server, 0)
	orphan := connect(t, "tcp4", "127.0.0.1:0")
	orphan.client.Close() // stays in FIN_WAIT2, without a descriptor, as long as the server does not close
	read(t, orphan.server, 0)
	closed := connect(t, "tcp4", "127.0.0.1:0")
	closed.client.Close()
	read(t, closed.server, 0)
	closed.server.Close() // leaves a TIME_WAIT
	unaccepted, err := net.Dial("tcp6", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer unaccepted.Close()
	dup, err := p.client.File() // of which no event tells
	if err != nil {
		t.Fatal(err)
	}
	defer dup.Close()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()

	for _, name := range conn.KindNames() {
		kind, err := conn.ParseKind(name)
		if err != nil {
			t.Fatal(err)
		}
		var missing, extra []string
		for range 20 { // other processes' sockets may change between the two
			want, err := tracker.NetConnections(t.Context(), kind)
			if err != nil {
				t.Fatal(err)
			}
			got, err := tr.Connections(kind)
			if err != nil {
				t.Fatal(err)
			}
			if missing, extra = compareRows(want, got); len(missing)+len(extra) == 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		for _, row := range missing {
			t.Errorf("%s: missing %s", name, row)
		}
		for _, row := range extra {
			t.Errorf("%s: too many %s", name, row)
		}
	}
}

// TestHalfClosed: once a process has closed its end, the kernel replaces the socket
// by one that comes and goes without an event, in FIN_WAIT2 until the peer closes, too.
// It is a row, but no connection that was found after a loss.
func TestHalfClosed(t *testing.T) {
	tr := open(t, tracker.Config{Freshness: tracker.AlwaysExact})
	s := subscribe(t, tr, tracker.Filter{NoSeed: true})
	p := connect(t, "tcp4", "127.0.0.1:0")
	local, remote := addr(p.client.LocalAddr()), addr(p.client.RemoteAddr())
	p.client.Close()
	read(t, p.server, 0)
	s.next("close of the client's end", func(e *conn.Event) bool { return e.Type == conn.EventClose && e.Laddr == local })

	status := func() (status conn.Status) {
		t.Helper()
		rows, err := tr.Connections(conn.KindTCP4)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.Laddr == local && r.Raddr == remote {
				status = r.Status
			}
		}
		return status
	}
	if got := status(); got != conn.StatusFinWait2 {
		t.Errorf("half closed, the client's end is a row in %v", got)
	}
	p.server.Close()
	eventually(t, "the client's end in TIME_WAIT", func() bool { return status() == conn.StatusTimeWait })
	for _, e := range s.rest(tr) {
		if e.Laddr == local {
			t.Errorf("and then %s, reconciled: %t", describe(&e), e.Reconciled)
		}
	}
}

// compareRows compares rows by psutil's seven fields.
func compareRows(want, got []conn.Conn) (missing, extra []string) {
	count := make(map[string]int)
	for _, c := range want {
		count[sevenFields(&c)]++
	}
	for _, c := range got {
		count[sevenFields(&c)]--
	}
	for row, n := range count {
		for ; n > 0; n-- {
			missing = append(missing, row)
		}
		for ; n < 0; n++ {
			extra = append(extra, row)
		}
	}
	return missing, extra
}

func sevenFields(c *conn.Conn) string {
	return fmt.Sprint(c.FD, c.Family, c.Type, c.Laddr, c.Raddr, c.Status, c.PID)
}
