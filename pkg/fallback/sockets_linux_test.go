package fallback

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

var (
	loopback4 = [4]byte{127, 0, 0, 1}
	loopback6 = [16]byte{15: 1}
	mapped    = [16]byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}
)

func sockaddr(family int, ip6 [16]byte, port uint16) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: loopback4, Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: ip6, Port: int(port)}
}

func listen(t testing.TB, family int, ip6 [16]byte) int {
	t.Helper()
	fd := socket(t, family, unix.SOCK_STREAM)
	must(t, unix.Bind(fd, sockaddr(family, ip6, 0)))
	must(t, unix.Listen(fd, 16))
	return fd
}

func connect(t testing.TB, family int, ip6 [16]byte, port uint16) int {
	t.Helper()
	fd := socket(t, family, unix.SOCK_STREAM)
	must(t, unix.Connect(fd, sockaddr(family, ip6, port)))
	return fd
}

func accept(t testing.TB, fd int) int {
	t.Helper()
	nfd, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { unix.Close(nfd) })
	return nfd
}

// waitState waits until the kernel has taken a TCP socket to a state.
func waitState(t testing.TB, fd int, status conn.Status) {
	t.Helper()
	eventually(t, status.String(), func() bool {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		must(t, err)
		return info.State == uint8(status)
	})
}

// A world is a set of sockets and the rows that they must make.
type world struct {
	rows   []row
	absent []conn.Addr // local addresses that must make none
}

// own adds the row of a socket that this process holds.
func (w *world) own(t testing.TB, fd int, raddr conn.Addr, status conn.Status) {
	t.Helper()
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	must(t, err)
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	must(t, err)
	w.rows = append(w.rows, row{
		int32(fd), conn.Family(family), conn.Type(typ), localAddr(t, fd), raddr, status, int32(os.Getpid()),
	})
}

// nobodys adds the row of a socket without an owner.
func (w *world) nobodys(family conn.Family, laddr, raddr conn.Addr, status conn.Status) {
	w.rows = append(w.rows, row{-1, family, conn.Stream, laddr, raddr, status, 0})
}

func (w *world) inet(t testing.TB) {
	t.Helper()
	none := conn.Addr{}
	for _, v := range []struct {
		family         int
		listen, target [16]byte
	}{
		{unix.AF_INET, [16]byte{}, [16]byte{}},
		{unix.AF_INET6, loopback6, loopback6},
		{unix.AF_INET6, [16]byte{}, mapped}, // listens on [::], for IPv4 as well
	} {
		l := listen(t, v.family, v.listen)
		w.own(t, l, none, conn.StatusListen)
		port := localAddr(t, l).Port()

		client := connect(t, v.family, v.target, port)
		server := accept(t, l)
		w.own(t, client, localAddr(t, server), conn.StatusEstablished)
		w.own(t, server, localAddr(t, client), conn.StatusEstablished)

		client = connect(t, v.family, v.target, port)
		server = accept(t, l)
		must(t, unix.Shutdown(client, unix.SHUT_WR))
		waitState(t, client, conn.StatusFinWait2)
		w.own(t, client, localAddr(t, server), conn.StatusFinWait2)
		w.own(t, server, localAddr(t, client), conn.StatusCloseWait)

		client = connect(t, v.family, v.target, port)
		server = accept(t, l)
		laddr, raddr := localAddr(t, client), localAddr(t, server)
		must(t, unix.Shutdown(client, unix.SHUT_WR))
		must(t, unix.Shutdown(server, unix.SHUT_WR))
		waitState(t, client, conn.StatusClose) // what is left of it is in TIME_WAIT
		w.nobodys(conn.Family(v.family), laddr, raddr, conn.StatusTimeWait)

		client = connect(t, v.family, v.target, port)
		raddr = remoteAddr(t, client)
		w.own(t, client, raddr, conn.StatusEstablished)
		w.nobodys(conn.Family(v.family), raddr, localAddr(t, client), conn.StatusEstablished) // not accepted

		idle := socket(t, v.family, unix.SOCK_STREAM)
		must(t, unix.Bind(idle, sockaddr(v.family, v.target, 0)))
		w.absent = append(w.absent, localAddr(t, idle))
		socket(t, v.family, unix.SOCK_STREAM)

		bound := socket(t, v.family, unix.SOCK_DGRAM)
		must(t, unix.Bind(bound, sockaddr(v.family, v.listen, 0)))
		w.own(t, bound, none, conn.StatusNone)
		connected := socket(t, v.family, unix.SOCK_DGRAM)
		must(t, unix.Connect(connected, sockaddr(v.family, v.target, 9)))
		w.own(t, connected, remoteAddr(t, connected), conn.StatusNone)
		socket(t, v.family, unix.SOCK_DGRAM)
	}

	// Two listeners with one address are two rows as long as their owner is known.
	var port uint16
	for range 2 {
		fd := socket(t, unix.AF_INET, unix.SOCK_STREAM)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		must(t, unix.Bind(fd, sockaddr(unix.AF_INET, [16]byte{}, port)))
		must(t, unix.Listen(fd, 1))
		port = localAddr(t, fd).Port()
		w.own(t, fd, none, conn.StatusListen)
	}
}

// unixNames are names that /proc/net/unix shows in one piece.
func unixNames(t testing.TB) []string {
	dir := t.TempDir()
	return []string{
		dir + "/s",
		dir + "/caf\xe9",
		dir + "/\xff\xfe",
		"@conntrace-test-" + dir,
		"@conntrace-test-" + dir + "\x00\x00x\x00",
	}
}

// oddNames are names that psutil does not get right.
func oddNames(t testing.TB) []string {
	dir := t.TempDir()
	return []string{
		dir + "/a b",
		dir + "/a ",
		dir + "/a\u00a0b",
		dir + "/a\nb",
		dir + "/a\n",
		dir + "/a\n\nb c",
		dir + "/a\r",
		"@conntrace-test-" + dir + "\n",
		"@",
	}
}

func (w *world) unix(t testing.TB, names []string) {
	t.Helper()
	unnamed := conn.AddrUnix("")
	for _, name := range names {
		sa := &unix.SockaddrUnix{Name: name}
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
			fd := socket(t, unix.AF_UNIX, typ)
			must(t, unix.Bind(fd, sa))
			w.own(t, fd, unnamed, conn.StatusNone)
			if strings.HasPrefix(name, "@") {
				break // abstract names are one space for all types
			}
			must(t, os.Remove(name))
		}
	}

	l := socket(t, unix.AF_UNIX, unix.SOCK_STREAM)
	must(t, unix.Bind(l, &unix.SockaddrUnix{Name: names[0]}))
	must(t, unix.Listen(l, 4))
	w.own(t, l, unnamed, conn.StatusNone)
	for range 3 { // one is accepted; two are not, and make equal rows
		client := socket(t, unix.AF_UNIX, unix.SOCK_STREAM)
		must(t, unix.Connect(client, &unix.SockaddrUnix{Name: names[0]}))
		w.own(t, client, unnamed, conn.StatusNone)
	}
	w.own(t, accept(t, l), unnamed, conn.StatusNone)
	w.nobodys(conn.Unix, conn.AddrUnix(names[0]), unnamed, conn.StatusNone)

}

// check fails the test unless the rows of w are in s, exactly once each.
func (w *world) check(t *testing.T, s Snapshot) {
	t.Helper()
	for _, warning := range s.Warnings {
		t.Error("warning:", warning)
	}
	count := make(map[row]int)
	for _, c := range s.Conns {
		count[rowOf(c)]++
	}
	for r, n := range count {
		if n > 1 {
			t.Errorf("%d times: %+v", n, r)
		}
	}
	for _, r := range w.rows {
		if count[r] == 0 {
			t.Errorf("missing: %+v", r)
		}
	}
	for _, addr := range w.absent {
		if rows := rowsWith(s, addr); rows != nil {
			t.Errorf("unexpected: %+v", rows)
		}
	}
}

// ownRows returns the rows of this process in s.
func ownRows(s Snapshot) map[row]bool {
	own := make(map[row]bool)
	for _, c := range s.Conns {
		if c.PID == int32(os.Getpid()) {
			own[rowOf(c)] = true
		}
	}
	return own
}

func TestSockets(t *testing.T) {
	var w world
	w.inet(t)
	w.unix(t, append(unixNames(t), oddNames(t)...))
	forSources(t, func(t *testing.T, src Source) {
		w.check(t, snapshot(t, src, Query{Kind: conn.KindAll}))
	})

	all := sources(t)
	a, b := ownRows(snapshot(t, all[0], Query{Kind: conn.KindAll})), ownRows(snapshot(t, all[1], Query{Kind: conn.KindAll}))
	if !maps.Equal(a, b) {
		t.Errorf("the sources disagree:\n%v\n%v", a, b)
	}
}

func TestKinds(t *testing.T) {
	var w world
	w.inet(t)
	w.unix(t, unixNames(t))
	forSources(t, func(t *testing.T, src Source) {
		for _, name := range conn.KindNames() {
			kind, err := conn.ParseKind(name)
			must(t, err)
			want := make(map[row]bool)
			for _, r := range w.rows {
				c := conn.Conn{Family: r.family, Type: r.typ}
				if r.pid != 0 && kind.Has(c.Kind()) {
					want[r] = true
				}
			}
			got := ownRows(snapshot(t, src, Query{Kind: kind}))
			for r := range want {
				if !got[r] {
					t.Errorf("%s: missing %+v", name, r)
				}
			}
			for r := range got {
				c := conn.Conn{Family: r.family, Type: r.typ}
				if !kind.Has(c.Kind()) {
					t.Errorf("%s: unexpected %+v", name, r)
				}
			}
		}
	})
}

func TestRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	fd := socket(t, unix.AF_UNIX, unix.SOCK_STREAM)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: "conntrace-relative"}))
	forSources(t, func(t *testing.T, src Source) {
		oneWith(t, snapshot(t, src, Query{Kind: conn.KindUnix}), conn.AddrUnix("conntrace-relative"), conn.StatusNone)
	})
}

func TestAutobind(t *testing.T) {
	fd := socket(t, unix.AF_UNIX, unix.SOCK_DGRAM)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{})) // a name of five hexadecimal digits
	name := localAddr(t, fd)
	if len(name.Path()) != len("@12345") {
		t.Fatalf("name %q", name)
	}
	forSources(t, func(t *testing.T, src Source) {
		oneWith(t, snapshot(t, src, Query{Kind: conn.KindUnix}), name, conn.StatusNone)
	})
}

// What a row knows beyond psutil's fields.
func TestDetails(t *testing.T) {
	fd := listen(t, unix.AF_INET, [16]byte{})
	name := t.TempDir() + "/s"
	ufd := socket(t, unix.AF_UNIX, unix.SOCK_STREAM)
	must(t, unix.Bind(ufd, &unix.SockaddrUnix{Name: name}))
	var ns unix.Stat_t
	must(t, unix.Stat("/proc/thread-self/ns/net", &ns))
	exe, err := os.Executable()
	must(t, err)

	forSources(t, func(t *testing.T, src Source) {
		s := snapshot(t, src, Query{Kind: conn.KindAll, Holders: true})
		for _, fd := range []int{fd, ufd} {
			status := conn.StatusNone
			if fd != ufd {
				status = conn.StatusListen
			}
			c := oneWith(t, s, localAddr(t, fd), status)
			var st unix.Stat_t
			must(t, unix.Fstat(fd, &st))
			if !c.Known.Has(conn.KnownInode|conn.KnownNetNS|conn.KnownHolders) || c.Inode != st.Ino || c.NetNS != uint32(ns.Ino) {
				t.Errorf("got %+v, want inode %d, netns %d", c, st.Ino, ns.Ino)
			}
			if want := []conn.Holder{{PID: int32(os.Getpid()), FD: int32(fd)}}; !slices.Equal(c.Holders, want) {
				t.Errorf("holders %v, want %v", c.Holders, want)
			}
			if c.Known.Has(conn.KnownUID) && c.UID != uint32(os.Getuid()) {
				t.Errorf("uid %d", c.UID)
			}
			if !c.Known.Has(conn.KnownUID) && (fd != ufd || src.Name() == "netlink") {
				t.Errorf("uid is not known")
			}
			if src.Name() == "netlink" {
				cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
				must(t, err)
				if !c.Known.Has(conn.KnownCookie) || c.Cookie != cookie {
					t.Errorf("cookie %x, want %x", c.Cookie, cookie)
				}
			}
			if p := c.Process; p == nil || p.PID != c.PID || p.Executable != exe || p.Start.IsZero() || p.UID != uint32(os.Getuid()) {
				t.Errorf("process %+v", p)
			}
		}
		procs := make(map[int32]*conn.Process)
		for _, c := range s.Conns {
			if p, ok := procs[c.PID]; ok && p != c.Process {
				t.Errorf("process %d is there twice", c.PID)
			}
			procs[c.PID] = c.Process
		}
	})
}
