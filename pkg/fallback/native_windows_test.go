package fallback

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/conntrace/conntrace/pkg/conn"
)

// helperEnv makes the test binary a process that listens, for a test to find.
const helperEnv = "CONNTRACE_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		fmt.Println(l.Addr())
		io.Copy(io.Discard, os.Stdin) // until the test closes it
		return
	}
	os.Exit(m.Run())
}

var self = int32(os.Getpid())

func openSource(t *testing.T) Source {
	t.Helper()
	src, err := Native()
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func snapshot(t *testing.T, src Source, q Query) []conn.Conn {
	t.Helper()
	snap, err := src.Snapshot(t.Context(), q)
	if err != nil || len(snap.Warnings) > 0 {
		t.Fatal(err, snap.Warnings)
	}
	return snap.Conns
}

// find returns the one row with the addresses. A remote address that is not valid
// stands for none.
func find(t *testing.T, rows []conn.Conn, laddr, raddr conn.Addr) conn.Conn {
	t.Helper()
	var found []conn.Conn
	for _, c := range rows {
		if c.Laddr == laddr && c.Raddr == raddr {
			found = append(found, c)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d rows from %q to %q", len(found), laddr, raddr)
	}
	return found[0]
}

func addrOf(a net.Addr) conn.Addr { return conn.AddrFrom(netip.MustParseAddrPort(a.String())) }

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// connect opens a connection to l and returns both of its ends.
func connect(t *testing.T, l net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// bindUDP returns the address of a new UDP socket. Package net asks the socket for
// what Wine does not have.
func bindUDP(t *testing.T, to windows.Sockaddr) conn.Addr {
	t.Helper()
	var data windows.WSAData
	if err := windows.WSAStartup(0x202, &data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { windows.WSACleanup() })
	family := windows.AF_INET
	if _, ok := to.(*windows.SockaddrInet6); ok {
		family = windows.AF_INET6
	}
	s, err := windows.Socket(family, windows.SOCK_DGRAM, windows.IPPROTO_UDP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { windows.Closesocket(s) })
	if err := windows.Bind(s, to); err != nil {
		t.Fatal(err)
	}
	name, err := windows.Getsockname(s)
	if err != nil {
		t.Fatal(err)
	}
	if name4, ok := name.(*windows.SockaddrInet4); ok {
		return conn.AddrIPv4(name4.Addr, uint16(name4.Port))
	}
	name6 := name.(*windows.SockaddrInet6)
	return conn.AddrIPv6(name6.Addr, uint16(name6.Port))
}

var (
	loopback4 = [4]byte{127, 0, 0, 1}
	loopback6 = [16]byte{15: 1}
)

func TestNativeTCP(t *testing.T) {
	src := openSource(t)
	for _, tt := range []struct {
		address string
		family  conn.Family
		kind    conn.Kind
	}{
		{"127.0.0.1:0", conn.Inet, conn.KindTCP4},
		{"[::1]:0", conn.Inet6, conn.KindTCP6},
	} {
		l := listen(t, "tcp", tt.address)
		client, server := connect(t, l)
		for _, q := range []Query{{Kind: conn.KindAll}, {Kind: conn.KindInet, PID: self}, {Kind: tt.kind}} {
			rows := snapshot(t, src, q)
			for _, want := range []struct {
				laddr, raddr conn.Addr
				status       conn.Status
			}{
				{addrOf(l.Addr()), conn.Addr{}, conn.StatusListen},
				{addrOf(client.LocalAddr()), addrOf(client.RemoteAddr()), conn.StatusEstablished},
				{addrOf(server.LocalAddr()), addrOf(server.RemoteAddr()), conn.StatusEstablished},
			} {
				c := find(t, rows, want.laddr, want.raddr)
				if c.FD != -1 || c.Family != tt.family || c.Type != conn.Stream || c.Status != want.status || c.PID != self || c.Known != 0 {
					t.Errorf("%+v: %+v, want %s", q, c, want.status)
				}
			}
		}
		other := snapshot(t, src, Query{Kind: conn.KindInet &^ tt.kind})
		if i := slices.IndexFunc(other, func(c conn.Conn) bool { return c.Kind() == tt.kind }); i >= 0 {
			t.Errorf("asked for all but %s, and got %+v", tt.kind, other[i])
		}
	}
}

func TestNativeUDP(t *testing.T) {
	src := openSource(t)
	for _, tt := range []struct {
		to     windows.Sockaddr
		family conn.Family
	}{
		{&windows.SockaddrInet4{Addr: loopback4}, conn.Inet},
		{&windows.SockaddrInet4{}, conn.Inet},
		{&windows.SockaddrInet6{Addr: loopback6}, conn.Inet6},
	} {
		laddr := bindUDP(t, tt.to)
		c := find(t, snapshot(t, src, Query{Kind: conn.KindUDP}), laddr, conn.Addr{})
		if c.FD != -1 || c.Family != tt.family || c.Type != conn.Datagram || c.Status != conn.StatusNone || c.PID != self {
			t.Errorf("%+v", c)
		}
	}
}

// TestNativeProcess: a row tells the program and start of its process, which is
// another one here.
func TestNativeProcess(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	src := openSource(t)
	before := time.Now()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait := func() { stdin.Close(); cmd.Wait() }
	defer wait()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	laddr := conn.AddrFrom(netip.MustParseAddrPort(strings.TrimSpace(line)))
	pid := int32(cmd.Process.Pid)

	rows := snapshot(t, src, Query{Kind: conn.KindTCP, PID: pid})
	p := find(t, rows, laddr, conn.Addr{}).Process
	if len(rows) != 1 || p == nil {
		t.Fatalf("rows of process %d: %+v", pid, rows)
	}
	// A file time has 100 ns.
	if p.PID != pid || p.Comm != filepath.Base(exe) || !strings.EqualFold(p.Executable, exe) ||
		p.Start.Before(before.Add(-time.Second)) || p.Start.After(time.Now().Add(time.Second)) {
		t.Errorf("%+v, want %s, started between %s and now", p, exe, before)
	}
	if c := find(t, snapshot(t, src, Query{Kind: conn.KindTCP}), laddr, conn.Addr{}); c.PID != pid {
		t.Errorf("system-wide: %+v", c)
	}

	wait()
	if _, err := src.Snapshot(t.Context(), Query{Kind: conn.KindTCP, PID: pid}); !errors.Is(err, conn.ErrNoSuchProcess) {
		t.Errorf("of a process that has ended: %v", err)
	}
	// Windows takes the number of a process, plus up to 3, for that process.
	if _, err := src.Snapshot(t.Context(), Query{Kind: conn.KindTCP, PID: self + 1}); !errors.Is(err, conn.ErrNoSuchProcess) {
		t.Errorf("of no process: %v", err)
	}
}

// TestNativeKinds: as with psutil, all that Windows has is inet, and unix sockets cannot
// be asked for.
func TestNativeKinds(t *testing.T) {
	src := openSource(t)
	if _, err := src.Snapshot(t.Context(), Query{Kind: conn.KindUnix}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("unix sockets: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := src.Snapshot(ctx, Query{Kind: conn.KindAll}); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}

// TestNativeGrowth: a table that has outgrown the buffer is read whole.
func TestNativeGrowth(t *testing.T) {
	src := openSource(t)
	snapshot(t, src, Query{Kind: conn.KindTCP}) // makes the buffer
	const many = 200
	var addrs []conn.Addr
	for range many {
		addrs = append(addrs, addrOf(listen(t, "tcp4", "127.0.0.1:0").Addr()))
	}
	rows := snapshot(t, src, Query{Kind: conn.KindTCP})
	for _, a := range addrs {
		find(t, rows, a, conn.Addr{})
	}
}

// TestNativePoller polls while connections come and go.
func TestNativePoller(t *testing.T) {
	p := NewPoller(openSource(t), Query{Kind: conn.KindTCP})
	ours := make(map[uint16]bool) // ports
	poll := func() (got []string) {
		t.Helper()
		events, err := p.Poll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if !ours[e.Laddr.Port()] && !ours[e.Raddr.Port()] {
				continue
			}
			got = append(got, e.Type.String()+" "+e.Direction.String())
			if e.PID != self || e.Process == nil || e.FD != -1 {
				t.Errorf("%s of %+v", e.Type, e.Conn)
			}
		}
		slices.Sort(got)
		return got
	}
	expect := func(when string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}

	poll()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l := listen(t, "tcp", address)
		ours[addrOf(l.Addr()).Port()] = true
		expect("listen", poll(), "listen unknown")
		client, server := connect(t, l)
		expect("connect", poll(), "accept inbound", "connect outbound")
		expect("nothing", poll())
		client.Close()
		server.Close()
		// The last segments may still be on their way.
		var got []string
		for deadline := time.Now().Add(10 * time.Second); len(got) < 2 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			got = append(got, poll()...)
		}
		slices.Sort(got)
		expect("close", got, "close inbound", "close outbound")
		l.Close()
		expect("listener", poll(), "close unknown")
	}
}
