package tracker_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// helperConnect is told "ADDRESS" again and again: it makes a blocking connect(2)
// there, and answers with the number of its error. Before each it answers with the
// descriptor.
func helperConnect(r *bufio.Scanner, w io.Writer) error {
	runtime.LockOSThread()
	for r.Scan() {
		to, err := netip.ParseAddrPort(r.Text())
		if err != nil {
			return err
		}
		var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
		family := unix.AF_INET6
		if to.Addr().Is4() {
			sa, family = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}, unix.AF_INET
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fmt.Fprintln(w, fd)
		errno := 0
		if err := unix.Connect(fd, sa); err != nil {
			errno = int(err.(syscall.Errno))
		}
		fmt.Fprintln(w, errno)
		unix.Close(fd)
	}
	return nil
}

// TestFailBeforeSyn: an attempt for which nothing can be sent is told with its
// error, once.
func TestFailBeforeSyn(t *testing.T) {
	tr := open(t, tracker.Config{})
	p, netns := startElsewhere(t, "connect")
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{p.pid()}})
	for _, tt := range []struct {
		to    string
		raddr string
		errno syscall.Errno
	}{
		{"192.0.2.1:80", "192.0.2.1:80", syscall.ENETUNREACH},
		{"[2001:db8::1]:443", "[2001:db8::1]:443", syscall.ENETUNREACH},
		{"[::ffff:192.0.2.1]:80", "[::ffff:192.0.2.1]:80", syscall.ENETUNREACH},
		{"127.0.0.1:1", "127.0.0.1:1", syscall.ECONNREFUSED}, // after a SYN: by the change of its state
		{"255.255.255.255:80", "255.255.255.255:80", syscall.ENETUNREACH},
	} {
		fd := p.ask(tt.to)
		if got := p.ask(); got != fmt.Sprint(int(tt.errno)) {
			t.Fatalf("connect %s: errno %s, want %d", tt.to, got, tt.errno)
		}
		e := s.event(conn.EventFail)
		if e.Error != tt.errno || e.Raddr != conn.AddrFrom(netip.MustParseAddrPort(tt.raddr)) || fmt.Sprint(e.FD) != fd ||
			e.PID != p.pid() || e.Process.Comm == "" || e.Direction != conn.Outbound || e.NetNS != netns {
			t.Errorf("connect %s: %s to %s, fd %d (want %s), pid %d, %s, netns %d", tt.to, e.Error, e.Raddr, e.FD, fd, e.PID, e.Direction, e.NetNS)
		}
		for _, e := range s.rest(tr) {
			t.Errorf("connect %s: and then %s", tt.to, describe(&e))
		}
	}
}

// TestFailNoPort: connect(2) gives up after the socket has been in SYN_SENT.
func TestFailNoPort(t *testing.T) {
	tr := open(t, tracker.Config{})
	taken := connect(t, "tcp4", "127.0.0.1:0") // its client's port leads to its listener already
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Events: []conn.EventType{conn.EventFail}})
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		t.Fatal(err)
	}
	// Bind to the client's own port by SO_REUSEADDR is refused; a range of one port is not.
	local := int(port(taken.client.LocalAddr()))
	const ipLocalPortRange = 51 // from 6.3
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, ipLocalPortRange, local<<16|local); err != nil {
		t.Skip("IP_LOCAL_PORT_RANGE:", err)
	}
	to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(port(taken.listener.Addr()))}
	if err := unix.Connect(fd, to); err != unix.EADDRNOTAVAIL {
		t.Fatal("connect:", err)
	}
	e := s.next("failure of this socket", func(e *conn.Event) bool { return e.FD == int32(fd) })
	if e.Error != syscall.EADDRNOTAVAIL || e.Raddr != addr(taken.listener.Addr()) {
		t.Errorf("%s to %s", e.Error, e.Raddr)
	}
	for _, e := range s.rest(tr) {
		if e.FD == int32(fd) {
			t.Errorf("and then %s: %s", describe(&e), e.Error)
		}
	}
}

// TestKilledConnecting: an attempt that ends because its process is killed is no
// success, and says so.
func TestKilledConnecting(t *testing.T) {
	tr := open(t, tracker.Config{})
	l := fullListener(t)
	p := start(t, "connect")
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{p.pid()}})
	p.ask(l)
	eventually(t, "SYN_SENT", func() bool {
		rows, err := tracker.NetConnectionsPID(t.Context(), conn.KindTCP, p.pid())
		if err != nil {
			t.Fatal(err)
		}
		return len(rows) == 1 && rows[0].Status == conn.StatusSynSent
	})
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	e := s.event(conn.EventFail)
	if e.Error != syscall.ECANCELED || e.PID != p.pid() || e.Raddr != conn.AddrFrom(l) {
		t.Errorf("%s, pid %d, to %s", e.Error, e.PID, e.Raddr)
	}
	for _, e := range s.rest(tr) {
		t.Errorf("and then %s", describe(&e))
	}
}

// fullListener returns the address of a listener whose queue is full: it answers no
// SYN.
func fullListener(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	first, err := net.Dial("tcp4", to.String()) // takes the one place
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { first.Close() })
	return to
}
