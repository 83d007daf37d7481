package tracker_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// loopbacks are the ways in which one connects to oneself.
var loopbacks = []struct {
	name, network, listen, dial string
	family                      conn.Family
}{
	{"IPv4", "tcp4", "127.0.0.1:0", "127.0.0.1", conn.Inet},
	{"IPv6", "tcp6", "[::1]:0", "::1", conn.Inet6},
}

// TestLifecycle follows one connection from listen to close, on both ends.
func TestLifecycle(t *testing.T) {
	tr := open(t, tracker.Config{})
	self := int32(os.Getpid())
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, lo := range loopbacks {
		t.Run(lo.name, func(t *testing.T) {
			s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{self}})
			before := time.Now()
			p := connect(t, lo.network, lo.listen)
			local, remote := addr(p.client.LocalAddr()), addr(p.client.RemoteAddr())

			check := func(e conn.Event, laddr, raddr conn.Addr, status conn.Status, direction conn.Direction, c syscall.Conn) {
				t.Helper()
				if e.Laddr != laddr || e.Raddr != raddr {
					t.Errorf("%s: %s -> %s, want %s -> %s", e.Type, e.Laddr, e.Raddr, laddr, raddr)
				}
				if e.Family != lo.family || e.Type.String() == "" || e.Conn.Type != conn.Stream || e.Status != status || e.Direction != direction {
					t.Errorf("%s: %s %s %s %s", e.Type, e.Family, e.Conn.Type, e.Status, e.Direction)
				}
				if e.PID != self || e.Process == nil || e.Process.PID != self || e.Process.Executable != exe ||
					!e.Process.HasUID || e.Process.UID != uint32(os.Getuid()) {
					t.Errorf("%s: pid %d, process %+v", e.Type, e.PID, e.Process)
				}
				if comm, _ := os.ReadFile("/proc/self/comm"); e.Process.Comm != strings.TrimSpace(string(comm)) {
					t.Errorf("%s: comm %q, want %q", e.Type, e.Process.Comm, comm)
				}
				if e.Time.Before(before.Add(-time.Second)) || e.Time.After(time.Now().Add(time.Second)) {
					t.Errorf("%s: time %s is not between %s and now", e.Type, e.Time, before)
				}
				if c == nil {
					return
				}
				fd := fdOf(t, c)
				if e.Direction == conn.Inbound {
					fd = acceptedFD(tr, fd)
				}
				if e.FD != fd {
					t.Errorf("%s: fd %d, want %d", e.Type, e.FD, fd)
				}
				if st := fstat(t, c); fd >= 0 && (e.Inode != st.Ino || !e.Known.Has(conn.KnownInode)) {
					t.Errorf("%s: inode %d, want %d", e.Type, e.Inode, st.Ino)
				}
				if cookie := cookieOf(t, c); e.Cookie != cookie || !e.Known.Has(conn.KnownCookie) {
					t.Errorf("%s: cookie %d, want %d", e.Type, e.Cookie, cookie)
				}
			}
			check(s.event(conn.EventListen), remote, conn.Addr{}, conn.StatusListen, 0, p.listener.(*net.TCPListener))
			check(s.event(conn.EventConnect), local, remote, conn.StatusEstablished, conn.Outbound, p.client)
			check(s.event(conn.EventAccept), remote, local, conn.StatusEstablished, conn.Inbound, p.server)

			if _, err := p.client.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			read(t, p.server, 1000)
			if _, err := p.server.Write(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			read(t, p.client, 10)

			p.client.Close()
			read(t, p.server, 0) // the FIN
			p.server.Close()
			for range 2 {
				e := s.event(conn.EventClose)
				if e.Close == nil || e.Close.Reason != conn.ReasonFin || e.Close.Duration <= 0 || e.Close.Duration > time.Minute || e.Close.RTT < 0 {
					t.Fatalf("close: %+v", e.Close)
				}
				if e.Laddr == local {
					check(e, local, remote, conn.StatusClose, conn.Outbound, nil)
					wantBytes(t, e, 1000, 10)
				} else {
					check(e, remote, local, conn.StatusClose, conn.Inbound, nil)
					wantBytes(t, e, 10, 1000)
				}
			}
			p.listener.Close()
			e := s.event(conn.EventClose)
			check(e, remote, conn.Addr{}, conn.StatusClose, 0, nil)
			if e.Close != nil {
				t.Errorf("a listener's close says how it ended: %+v", e.Close)
			}
		})
	}
}

func wantBytes(t *testing.T, e conn.Event, sent, received uint64) {
	t.Helper()
	if e.Close.BytesSent != sent || e.Close.BytesReceived != received {
		t.Errorf("%s: %d bytes sent and %d received, want %d and %d", e.Direction, e.Close.BytesSent, e.Close.BytesReceived, sent, received)
	}
}

// read reads n bytes, and the end of the stream if n is 0.
func read(t *testing.T, c net.Conn, n int) {
	t.Helper()
	buf := make([]byte, max(n, 1))
	got := 0
	for got < n || n == 0 {
		m, err := c.Read(buf[got:])
		got += m
		if n == 0 && err != nil {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func fstat(t *testing.T, c syscall.Conn) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Fstat(int(fdOf(t, c)), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func cookieOf(t *testing.T, c syscall.Conn) uint64 {
	t.Helper()
	cookie, err := unix.GetsockoptUint64(int(fdOf(t, c)), unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	return cookie
}

// TestMapped: an AF_INET6 socket that talks IPv4 stays AF_INET6.
func TestMapped(t *testing.T) {
	tr := open(t, tracker.Config{})
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{int32(os.Getpid())}})
	l, err := listen("[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial(t, l, "tcp4", fmt.Sprintf("127.0.0.1:%d", port(l.Addr())))

	if e := s.event(conn.EventConnect); e.Family != conn.Inet || e.Raddr.IP() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("connect: %s to %s", e.Family, e.Raddr)
	}
	if e := s.event(conn.EventAccept); e.Family != conn.Inet6 || e.Laddr.IP() != netip.MustParseAddr("::ffff:127.0.0.1") {
		t.Errorf("accept: %s on %s", e.Family, e.Laddr)
	}
}

// TestMultipath: Go listens with MPTCP unless told otherwise. It must look like
// plain TCP, and be told once.
func TestMultipath(t *testing.T) {
	if b, err := os.ReadFile("/proc/sys/net/mptcp/enabled"); err != nil || strings.TrimSpace(string(b)) != "1" {
		t.Skip("this kernel has no MPTCP, or it is switched off")
	}
	for _, client := range []bool{false, true} {
		t.Run(fmt.Sprintf("client=%t", client), func(t *testing.T) {
			tr := open(t, tracker.Config{})
			s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{int32(os.Getpid())}})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var d net.Dialer
			d.SetMultipathTCP(client)
			c, err := d.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			a, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			a.Close()
			l.Close()

			counts := make(map[conn.EventType]int)
			for counts[conn.EventClose] < 3 {
				e := s.next("event", func(*conn.Event) bool { return true })
				counts[e.Type]++
				if e.PID != int32(os.Getpid()) || e.FD < 0 && (e.Direction != conn.Inbound || acceptedFD(tr, 0) == 0) {
					t.Errorf("%s by %d as %d", e.Type, e.PID, e.FD)
				}
			}
			for _, e := range s.rest(tr) {
				counts[e.Type]++
			}
			for kind, n := range map[conn.EventType]int{conn.EventListen: 1, conn.EventConnect: 1, conn.EventAccept: 1, conn.EventClose: 3} {
				if counts[kind] != n {
					t.Errorf("%d %s events, want %d", counts[kind], kind, n)
				}
			}
		})
	}
}

// TestRefused: a connect to a port without a listener.
func TestRefused(t *testing.T) {
	tr := open(t, tracker.Config{})
	port := refusedPort(t)
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: []uint16{port}})
	if _, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		t.Fatal("connected")
	}
	e := s.event(conn.EventFail)
	if e.Error != syscall.ECONNREFUSED || e.PID != int32(os.Getpid()) || e.Direction != conn.Outbound ||
		e.Raddr.Port() != port || e.Laddr.Port() == 0 {
		t.Errorf("%s: error %v, direction %s", describe(&e), e.Error, e.Direction)
	}
	if rest := s.rest(tr); len(rest) > 0 {
		t.Errorf("and then %s", describe(&rest[0]))
	}
}

// TestCloseReasons: how a connection ends, by whom.
func TestCloseReasons(t *testing.T) {
	tr := open(t, tracker.Config{})
	for _, tt := range []struct {
		name   string
		close  func(t *testing.T, p pair)
		reason conn.Reason
	}{
		{"client first", func(t *testing.T, p pair) { p.client.Close(); read(t, p.server, 0); p.server.Close() }, conn.ReasonFin},
		{"server first", func(t *testing.T, p pair) { p.server.Close(); read(t, p.client, 0); p.client.Close() }, conn.ReasonFin},
		{"both", func(t *testing.T, p pair) {
			p.server.CloseWrite()
			p.client.CloseWrite()
			p.client.Close()
			p.server.Close()
		}, conn.ReasonFin},
		{"reset by linger", func(t *testing.T, p pair) { p.client.SetLinger(0); p.client.Close(); p.server.Close() }, conn.ReasonReset},
		{"reset by unread data", func(t *testing.T, p pair) {
			if _, err := p.client.Write([]byte("unread")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "data at the server", func() bool {
				n, err := unix.IoctlGetInt(int(fdOf(t, p.server)), unix.TIOCINQ)
				return err == nil && n == 6
			})
			p.server.Close()
			p.client.Close()
		}, conn.ReasonReset},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := connect(t, "tcp4", "127.0.0.1:0")
			s := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: []uint16{port(p.client.LocalAddr())}})
			tt.close(t, p)
			for range 2 {
				if e := s.event(conn.EventClose); e.Close == nil || e.Close.Reason != tt.reason || e.PID != int32(os.Getpid()) {
					t.Errorf("%s ended by %+v, want %s", describe(&e), e.Close, tt.reason)
				}
			}
		})
	}
}

// TestInheritedListener: a connection belongs to the process that accepts it, not
// to the one that listens.
func TestInheritedListener(t *testing.T) {
	tr := open(t, tracker.Config{})
	l, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	worker := start(t, "worker", f)
	f.Close()
	defer l.Close()
	worker.ask()

	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: []uint16{port(l.Addr())}})
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := s.event(conn.EventAccept)
	if e.PID != worker.pid() || e.FD < acceptedFD(tr, 0) || e.Raddr != addr(c.LocalAddr()) {
		t.Errorf("accepted by %d (fd %d), want %d: %s", e.PID, e.FD, worker.pid(), describe(&e))
	}
	c.Close()
	for range 2 {
		e := s.event(conn.EventClose)
		want := int32(os.Getpid())
		if e.Direction == conn.Inbound {
			want = worker.pid()
		}
		if e.PID != want {
			t.Errorf("close of %s has pid %d, want %d", e.Direction, e.PID, want)
		}
	}
}

// TestBacklog: a connection that is not accepted yet belongs to nobody; one that
// was there before the tracker gets its owner when it is accepted; and one that
// has ended by then is told all the same.
func TestBacklog(t *testing.T) {
	l, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialOne := func() *net.TCPConn {
		t.Helper()
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}
	before := dialOne()
	tr := open(t, tracker.Config{})
	after, aborted := dialOne(), dialOne()
	aborted.SetLinger(0)
	aborted.Close()

	inbound := func(c net.Conn) *conn.Conn {
		t.Helper()
		rows, err := tr.Connections(conn.KindTCP4)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(rows, func(r conn.Conn) bool { return r.Raddr == addr(c.LocalAddr()) })
		if i < 0 {
			t.Fatalf("no row of the connection from %s", c.LocalAddr())
		}
		return &rows[i]
	}
	for _, c := range []net.Conn{before, after} {
		if r := inbound(c); r.PID != 0 || r.FD != -1 || r.Inode != 0 {
			t.Errorf("not accepted, but held by %d as %d, inode %d", r.PID, r.FD, r.Inode)
		}
	}
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{int32(os.Getpid())}, Direction: conn.Inbound})
	for _, c := range []net.Conn{before, after, aborted} {
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		e := s.event(conn.EventAccept)
		if e.Raddr != addr(c.LocalAddr()) || e.FD != acceptedFD(tr, fdOf(t, a.(*net.TCPConn))) {
			t.Errorf("accepted %s as fd %d", describe(&e), fdOf(t, a.(*net.TCPConn)))
		}
		if c != net.Conn(aborted) {
			if r := inbound(c); r.PID != int32(os.Getpid()) || r.FD != e.FD {
				t.Errorf("accepted as %d, but held by %d as %d", e.FD, r.PID, r.FD)
			}
		}
		a.Close()
	}
}

// TestSeed: what exists before the tracker is told first, with its process, and
// its end is told like any other.
func TestSeed(t *testing.T) {
	server := start(t, "server")
	address := server.ask("127.0.0.1:0")
	c, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("echo")); err != nil { // so that it is accepted
		t.Fatal(err)
	}
	read(t, c, 4)

	tr := open(t, tracker.Config{})
	s := subscribe(t, tr, tracker.Filter{Ports: []uint16{port(c.RemoteAddr())}})
	want := map[conn.Status]map[conn.Direction]int32{
		conn.StatusListen:      {0: server.pid()},
		conn.StatusEstablished: {conn.Outbound: int32(os.Getpid()), conn.Inbound: server.pid()},
	}
	for range 3 {
		e := s.event(conn.EventSeed)
		if pid := want[e.Status][e.Direction]; pid == 0 || e.PID != pid || e.FD < 0 || e.Process == nil || e.Process.Executable == "" {
			t.Errorf("seed of a %s %s socket has pid %d, fd %d, process %+v, want pid %d", e.Direction, e.Status, e.PID, e.FD, e.Process, pid)
		}
		delete(want[e.Status], e.Direction)
	}
	c.Close()
	for range 2 {
		e := s.event(conn.EventClose)
		if e.Close == nil || e.Close.Duration != -1 {
			t.Errorf("close: %+v, want an unknown duration", e.Close)
		}
		wantBytes(t, e, 4, 4)
		if e.Direction == conn.Inbound && e.PID != server.pid() || e.Direction == conn.Outbound && e.PID != int32(os.Getpid()) {
			t.Errorf("close of the %s end has pid %d", e.Direction, e.PID)
		}
	}
}

// TestOtherNamespace: events come from every network namespace, as do the sockets
// that exist; Connections shows the caller's only, as psutil does.
func TestOtherNamespace(t *testing.T) {
	existing, existingNS := startElsewhere(t, "self")
	existing.ask("127.0.0.1:0", 1)
	tr := open(t, tracker.Config{})
	s := subscribe(t, tr, tracker.Filter{PIDs: []int32{existing.pid()}})
	for range 3 {
		e := s.event(conn.EventSeed)
		if e.NetNS != existingNS || !e.Known.Has(conn.KnownNetNS) || e.PID != existing.pid() || e.FD < 0 {
			t.Errorf("seed in namespace %d, want %d: %s", e.NetNS, existingNS, describe(&e))
		}
	}

	later, laterNS := startElsewhere(t, "self")
	s = subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{later.pid()}})
	later.ask("127.0.0.1:0", 1)
	for _, kind := range []conn.EventType{conn.EventListen, conn.EventConnect, conn.EventAccept} {
		if e := s.event(kind); e.NetNS != laterNS {
			t.Errorf("%s in namespace %d, want %d", kind, e.NetNS, laterNS)
		}
	}
	rows, err := tr.Connections(conn.KindTCP)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.NetNS == existingNS || r.NetNS == laterNS {
			t.Errorf("Connections shows %s -> %s of another namespace", r.Laddr, r.Raddr)
		}
	}
	later.stop() // and its namespace with it
	for range 3 {
		if e := s.event(conn.EventClose); e.NetNS != laterNS || e.PID != later.pid() {
			t.Errorf("close in namespace %d: %s", e.NetNS, describe(&e))
		}
	}
}

// TestExited: a process that is gone when its event is read is still named.
func TestExited(t *testing.T) {
	tr := open(t, tracker.Config{})
	server := start(t, "server")
	address := netip.MustParseAddrPort(server.ask("127.0.0.1:0"))
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: []uint16{address.Port()}, Events: []conn.EventType{conn.EventConnect}})
	comm := filepath.Base(os.Args[0])
	comm = comm[:min(len(comm), 15)] // TASK_COMM_LEN
	for range 20 {
		client := start(t, "client")
		client.ask(address, 1)
		client.cmd.Process.Kill()
		client.stop()
		e := s.event(conn.EventConnect)
		if e.PID != client.pid() || e.Process == nil || e.Process.Comm != comm || e.Process.Start.IsZero() {
			t.Fatalf("pid %d, process %+v, want pid %d", e.PID, e.Process, client.pid())
		}
	}
}
