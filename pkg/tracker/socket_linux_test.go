package tracker_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

func init() {
	helpers["hold"] = helperHold
	helpers["stranger"] = helperStranger
}

// helperHold keeps what it has inherited until stdin is closed.
func helperHold(r *bufio.Scanner, w io.Writer) error {
	fmt.Fprintln(w, "ready")
	for r.Scan() {
	}
	return nil
}

// hold starts a process that holds a duplicate of c as descriptor 3, in the place
// of this one, which closes its own.
func hold(t *testing.T, c interface {
	File() (*os.File, error)
	io.Closer
}) *process {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "hold", f)
	p.ask()
	f.Close()
	c.Close()
	return p
}

// rowOf returns the row of the descriptor fd of the process pid.
func rowOf(t *testing.T, pid, fd int32) *conn.Conn {
	t.Helper()
	rows, err := tracker.NetConnectionsPID(t.Context(), conn.KindAll, pid)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(rows, func(c conn.Conn) bool { return c.FD == fd })
	if i < 0 {
		t.Fatalf("descriptor %d is not among the rows of process %d: %+v", fd, pid, rows)
	}
	if c := &rows[i]; !c.Known.Has(conn.KnownInode|conn.KnownCookie) || c.Process == nil {
		t.Fatalf("the row knows too little for this test: %+v", c)
	}
	return &rows[i]
}

func ownRow(t *testing.T, c syscall.Conn) *conn.Conn {
	t.Helper()
	return rowOf(t, int32(os.Getpid()), fdOf(t, c))
}

// closing closes c with the test.
func closing[T io.Closer](t *testing.T, c T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echo sends text from one end to the other, and fails the test unless it arrives.
func echo(t *testing.T, from, to net.Conn) {
	t.Helper()
	text := []byte("through a duplicate")
	if _, err := from.Write(text); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len(text))
	to.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(to, buf); err != nil || !bytes.Equal(buf, text) {
		t.Fatalf("got %q, %v", buf, err)
	}
}

// streams are the sockets that connections are made of.
var streams = []struct {
	name, network, address string
	mptcp                  bool
}{
	{"TCP", "tcp4", "127.0.0.1:0", false},
	{"TCP6", "tcp6", "[::1]:0", false},
	{"MPTCP", "tcp4", "127.0.0.1:0", true},
	{"unix", "unix", "", false},
	{"unixpacket", "unixpacket", "", false},
}

// connectStream returns a listener and both ends of a connection to it.
func connectStream(t *testing.T, network, address string, mptcp bool) (l net.Listener, client, server net.Conn) {
	t.Helper()
	if address == "" {
		address = filepath.Join(t.TempDir(), "socket")
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(mptcp)
	l, err := lc.Listen(t.Context(), network, address)
	closing(t, l, err)
	var d net.Dialer
	d.SetMultipathTCP(mptcp)
	client, err = d.DialContext(t.Context(), network, l.Addr().String())
	closing(t, client, err)
	server, err = l.Accept()
	closing(t, server, err)
	return l, client, server
}

// A holdable is a socket of package net.
type holdable interface {
	syscall.Conn
	File() (*os.File, error)
	io.Closer
}

// TestSocketOwn makes connections and listeners of the rows of this process.
func TestSocketOwn(t *testing.T) {
	for _, s := range streams {
		t.Run(s.name, func(t *testing.T) {
			l, client, server := connectStream(t, s.network, s.address, s.mptcp)
			if c, ok := server.(*net.TCPConn); ok && s.mptcp {
				if is, err := c.MultipathTCP(); err != nil || !is {
					t.Skip("this kernel has no MPTCP")
				}
			}

			c, err := tracker.NetConn(ownRow(t, server.(syscall.Conn)))
			closing(t, c, err)
			echo(t, c, client)
			echo(t, client, c)
			c.Close()
			echo(t, server, client) // goes on

			dup, err := tracker.Listener(ownRow(t, l.(syscall.Conn)))
			closing(t, dup, err)
			if dup.Addr().String() != l.Addr().String() {
				t.Errorf("listens on %s, not on %s", dup.Addr(), l.Addr())
			}
			another, err := net.Dial(s.network, l.Addr().String())
			closing(t, another, err)
			accepted, err := dup.Accept()
			closing(t, accepted, err)
			echo(t, another, accepted)
			dup.Close()
			again, err := net.Dial(s.network, l.Addr().String()) // the path of a unix socket is still there
			closing(t, again, err)
		})
	}
}

// TestSocketOther does the same with the rows of another process.
func TestSocketOther(t *testing.T) {
	for _, s := range streams {
		t.Run(s.name, func(t *testing.T) {
			l, client, server := connectStream(t, s.network, s.address, s.mptcp)
			if l, ok := l.(*net.UnixListener); ok {
				l.SetUnlinkOnClose(false)
			}
			holder := hold(t, server.(holdable))
			c, err := tracker.NetConn(rowOf(t, holder.pid(), 3))
			closing(t, c, err)
			echo(t, c, client)
			echo(t, client, c)

			network, address := l.Addr().Network(), l.Addr().String()
			holder = hold(t, l.(holdable))
			dup, err := tracker.Listener(rowOf(t, holder.pid(), 3))
			closing(t, dup, err)
			another, err := net.Dial(network, address)
			closing(t, another, err)
			accepted, err := dup.Accept()
			closing(t, accepted, err)
			echo(t, another, accepted)
		})
	}
}

// TestSocketLive makes sockets of events, and of the rows of a tracker.
func TestSocketLive(t *testing.T) {
	tr := open(t, tracker.Config{Freshness: tracker.AlwaysExact})
	for _, s := range streams {
		if !strings.HasPrefix(s.network, "tcp") {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			events := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{int32(os.Getpid())}})
			l, client, server := connectStream(t, s.network, s.address, s.mptcp)
			for _, want := range []struct {
				event conn.EventType
				laddr net.Addr
			}{{conn.EventListen, l.Addr()}, {conn.EventConnect, client.LocalAddr()}, {conn.EventAccept, server.LocalAddr()}} {
				e := events.event(want.event)
				if e.Laddr != addr(want.laddr) {
					t.Fatalf("%s of %s, not of %s", e.Type, e.Laddr, want.laddr)
				}
				if e.FD < 0 {
					continue // some ways of seeing accepts do not tell it
				}
				f, err := tracker.File(&e.Conn)
				closing(t, f, err)
			}
			rows, err := tr.Connections(conn.KindTCP)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for i := range rows {
				if c := &rows[i]; c.PID == int32(os.Getpid()) && (c.Laddr == addr(l.Addr()) || c.Laddr == addr(client.LocalAddr())) {
					n++
					f, err := tracker.File(c)
					closing(t, f, err)
				}
			}
			if n != 3 {
				t.Errorf("%d sockets, want 3", n)
			}
		})
	}
}

// TestSocketPacket makes datagram sockets of rows, of this process and another.
func TestSocketPacket(t *testing.T) {
	bound := map[string]func(t *testing.T) net.PacketConn{
		"UDP": func(t *testing.T) net.PacketConn {
			c, err := net.ListenPacket("udp4", "127.0.0.1:0")
			return closing(t, c, err)
		},
		"unixgram": func(t *testing.T) net.PacketConn {
			c, err := net.ListenPacket("unixgram", filepath.Join(t.TempDir(), "socket"))
			return closing(t, c, err)
		},
	}
	for name, bind := range bound {
		t.Run(name, func(t *testing.T) {
			c := bind(t)
			address := c.LocalAddr()
			check := func(row *conn.Conn) {
				t.Helper()
				dup, err := tracker.PacketConn(row)
				closing(t, dup, err)
				client, err := net.Dial(address.Network(), address.String())
				closing(t, client, err)
				if _, err := client.Write([]byte("datagram")); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 100)
				dup.SetReadDeadline(time.Now().Add(20 * time.Second))
				if n, _, err := dup.ReadFrom(buf); err != nil || string(buf[:n]) != "datagram" {
					t.Fatalf("got %q, %v", buf[:n], err)
				}

				// The connected end is both a connection and a datagram socket.
				connected := ownRow(t, client.(syscall.Conn))
				stream, err := tracker.NetConn(connected)
				closing(t, stream, err)
				if _, err := stream.Write([]byte("another")); err != nil {
					t.Fatal(err)
				}
				if n, _, err := dup.ReadFrom(buf); err != nil || string(buf[:n]) != "another" {
					t.Fatalf("got %q, %v", buf[:n], err)
				}
				packets, err := tracker.PacketConn(connected)
				closing(t, packets, err)
			}
			check(ownRow(t, c.(syscall.Conn)))
			holder := hold(t, c.(holdable))
			check(rowOf(t, holder.pid(), 3))
		})
	}
}

// TestSocketWrongKind: package net would make a connection of a listener, which
// fails only when it is used.
func TestSocketWrongKind(t *testing.T) {
	l, client, _ := connectStream(t, "tcp4", "127.0.0.1:0", false)
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	closing(t, packets, err)
	listener, connection, datagram := ownRow(t, l.(syscall.Conn)), ownRow(t, client.(syscall.Conn)), ownRow(t, packets.(syscall.Conn))

	netConn := func(c *conn.Conn) error { _, err := tracker.NetConn(c); return err }
	packetConn := func(c *conn.Conn) error { _, err := tracker.PacketConn(c); return err }
	newListener := func(c *conn.Conn) error { _, err := tracker.Listener(c); return err }
	for _, tt := range []struct {
		open func(*conn.Conn) error
		row  *conn.Conn
		want string
	}{
		{netConn, listener, "the socket listens: it is for Listener"},
		{netConn, datagram, "the socket is not connected"},
		{packetConn, listener, "not a datagram socket"},
		{packetConn, connection, "not a datagram socket"},
		{newListener, connection, "the socket does not listen"},
		{newListener, datagram, "the socket does not listen"},
	} {
		want := fmt.Sprintf("descriptor %d of process %d: %s", tt.row.FD, tt.row.PID, tt.want)
		if err := tt.open(tt.row); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	wantDescriptors(t, func() {
		for range 10 {
			netConn(listener)
			newListener(datagram)
		}
	})
}

// wantDescriptors fails the test if f leaves descriptors open.
func wantDescriptors(t *testing.T, f func()) {
	t.Helper()
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	f()
	if after := count(); after > before {
		t.Errorf("%d descriptors were left open", after-before)
	}
}

// TestSocketFlags: File leaves the flags of the open file as they are, unlike
// package net; and the duplicate is closed on exec.
func TestSocketFlags(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	owner := os.NewFile(uintptr(pair[0]), "owner")
	defer owner.Close()
	holder := start(t, "hold", owner)
	holder.ask()
	nonblocking := func() bool {
		t.Helper()
		flags, err := unix.FcntlInt(owner.Fd(), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		return flags&unix.O_NONBLOCK != 0
	}

	for _, row := range []*conn.Conn{rowOf(t, int32(os.Getpid()), int32(pair[0])), rowOf(t, holder.pid(), 3)} {
		f, err := tracker.File(row)
		closing(t, f, err)
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v: want close on exec", flags, err)
		}
		if _, err := f.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if nonblocking() {
			t.Error("File made the owner's socket non-blocking")
		}
	}
	c, err := tracker.NetConn(rowOf(t, holder.pid(), 3))
	closing(t, c, err)
	if !nonblocking() {
		t.Error("package net did not make the socket non-blocking: the documentation says so")
	}
}

// wantError fails the test unless err is what is wanted and names the descriptor.
func wantError(t *testing.T, c *conn.Conn, want error) {
	t.Helper()
	wantDescriptors(t, func() {
		f, err := tracker.File(c)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), fmt.Sprintf("descriptor %d of process %d: ", c.FD, c.PID)) {
			t.Errorf("got %v, want %v", err, want)
		}
	})
}

func TestSocketNoDescriptor(t *testing.T) {
	for _, c := range []conn.Conn{{FD: -1, PID: 1}, {FD: 3}, {FD: -1}} {
		if _, err := tracker.File(&c); err == nil || err.Error() != "no descriptor of the socket is known" {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestSocketChanged: the descriptor is closed, or used for something else.
func TestSocketChanged(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	row := rowOf(t, int32(os.Getpid()), int32(fd))
	if f, err := tracker.File(row); err != nil {
		t.Fatal(err)
	} else {
		f.Close()
	}
	other, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Dup3(other, fd, unix.O_CLOEXEC); err != nil { // closes fd before
		t.Fatal(err)
	}
	unix.Close(other)

	wantError(t, row, tracker.ErrSocketChanged)
	for _, known := range []conn.Known{conn.KnownInode, conn.KnownCookie} { // each of them shows it alone
		row := *row
		row.Known = known
		wantError(t, &row, tracker.ErrSocketChanged)
	}
	anything := *row
	anything.Known = 0 // whatever socket it is
	if f, err := tracker.File(&anything); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}

	null, err := os.Open(os.DevNull)
	closing(t, null, err)
	if err := unix.Dup3(int(null.Fd()), fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	wantError(t, row, tracker.ErrSocketChanged)
	wantError(t, &anything, tracker.ErrSocketChanged) // but no file

	unix.Close(fd)
	wantError(t, row, tracker.ErrSocketChanged)
}

// TestSocketChangedOther: the same in another process.
func TestSocketChangedOther(t *testing.T) {
	_, _, server := connectStream(t, "tcp4", "127.0.0.1:0", false)
	holder := hold(t, server.(holdable))
	row := *rowOf(t, holder.pid(), 3)
	row.FD = 0 // its stdin, a pipe
	wantError(t, &row, tracker.ErrSocketChanged)
	row.FD = 100
	wantError(t, &row, tracker.ErrSocketChanged)
}

// TestSocketProcessGone: the process has ended, and another one may have its PID.
func TestSocketProcessGone(t *testing.T) {
	l, _, server := connectStream(t, "tcp4", "127.0.0.1:0", false)
	holder := hold(t, server.(holdable))
	row := rowOf(t, holder.pid(), 3)
	holder.in.Close()
	eventually(t, "a zombie", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", holder.pid()))
		return err == nil && bytes.Contains(stat, []byte(") Z "))
	})
	if f, err := tracker.File(row); err == nil {
		f.Close()
		t.Error("a duplicate of a zombie's descriptor")
	} else if !errors.Is(err, conn.ErrNoSuchProcess) && !errors.Is(err, tracker.ErrSocketChanged) {
		t.Error(err)
	}
	holder.cmd.Wait()
	wantError(t, row, conn.ErrNoSuchProcess)

	// Another process: its socket has another inode, and it was started at another time.
	holder = hold(t, l.(holdable))
	reused := *rowOf(t, holder.pid(), 3)
	process := *reused.Process
	process.Start = process.Start.Add(-time.Hour)
	reused.Process = &process
	if f, err := tracker.File(&reused); err != nil {
		t.Errorf("the clock was set, the socket is the same: %v", err)
	} else {
		f.Close()
	}
	unknown := reused
	unknown.Known = 0
	wantError(t, &unknown, conn.ErrNoSuchProcess)
	unknown.FD = 0 // no socket
	wantError(t, &unknown, conn.ErrNoSuchProcess)
	reused.Inode++
	wantError(t, &reused, conn.ErrNoSuchProcess)
	reused.Process = rowOf(t, holder.pid(), 3).Process
	wantError(t, &reused, tracker.ErrSocketChanged)

	// A thread has no process's ID.
	if f, err := tracker.File(&conn.Conn{PID: int32(unix.Gettid()), FD: 3}); err == nil {
		f.Close()
	} else if unix.Gettid() != os.Getpid() && !errors.Is(err, conn.ErrNoSuchProcess) {
		t.Error(err)
	}
}

// TestSocketPermission: another user's process may not be traced.
func TestSocketPermission(t *testing.T) {
	if os.Geteuid() != 0 {
		// Whoever PID 1 is, an ordinary user may not trace it; but in a container it may
		// be the user's own.
		if _, err := os.ReadDir("/proc/1/fd"); !errors.Is(err, fs.ErrPermission) {
			testenv.Missing(t, "a process that may not be traced")
		}
		wantError(t, &conn.Conn{PID: 1, FD: 0}, fs.ErrPermission)
		return
	}
	l, _, _ := connectStream(t, "tcp4", "127.0.0.1:0", false)
	row := ownRow(t, l.(syscall.Conn))
	stranger := start(t, "stranger")
	stranger.ask()
	answer := stranger.ask(row.PID, row.FD)
	want := fmt.Sprintf("true descriptor %d of process %d: pidfd_getfd: operation not permitted: it takes CAP_SYS_PTRACE, ", row.FD, row.PID)
	if !strings.HasPrefix(answer, want) {
		t.Errorf("got %q, want %q", answer, want)
	}

	// The other way round root may.
	rows, err := tracker.NetConnectionsPID(t.Context(), conn.KindTCP, stranger.pid())
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	dup, err := tracker.Listener(&rows[0])
	closing(t, dup, err)
}

// helperStranger gives up root, and listens. It is told "PID FD" then, and answers
// whether it may not duplicate that, with the error.
func helperStranger(r *bufio.Scanner, w io.Writer) error {
	const nobody = 65534
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
		return err
	}
	l, err := listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Fprintln(w, l.Addr())
	for r.Scan() {
		var c conn.Conn
		fmt.Sscan(r.Text(), &c.PID)
		r.Scan()
		fmt.Sscan(r.Text(), &c.FD)
		_, err := tracker.File(&c)
		fmt.Fprintln(w, errors.Is(err, fs.ErrPermission), err)
	}
	return r.Err()
}
