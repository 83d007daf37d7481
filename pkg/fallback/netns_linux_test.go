package fallback

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
)

// unshareNet moves the test to a thread in a network namespace of its own, with
// loopback, until back is called or the test ends.
func unshareNet(t testing.TB) (back func()) {
	t.Helper()
	testenv.Root(t)
	runtime.LockOSThread()
	home, err := os.Open(callerDir + "/ns/net")
	must(t, err)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		testenv.Missing(t, "network namespaces: "+err.Error())
	}
	lo, err := unix.NewIfreq("lo")
	must(t, err)
	lo.SetUint16(unix.IFF_UP)
	must(t, unix.IoctlIfreq(socket(t, unix.AF_INET, unix.SOCK_DGRAM), unix.SIOCSIFFLAGS, lo))
	back = func() {
		if home == nil {
			return
		}
		must(t, unix.Setns(int(home.Fd()), unix.CLONE_NEWNET))
		home.Close()
		home = nil
		runtime.UnlockOSThread()
	}
	t.Cleanup(back)
	return back
}

func netnsInode(t testing.TB, dir string) uint32 {
	t.Helper()
	ns, err := netnsOf(dir)
	must(t, err)
	return ns.inode
}

func TestAllNamespaces(t *testing.T) {
	back := unshareNet(t)
	kid := startChild(t, "listen")
	there := localListener(t, kid)
	back()
	here := localAddr(t, listen(t, unix.AF_INET, [16]byte{}))
	inode := netnsInode(t, fmt.Sprintf("/proc/%d", kid.pid))
	home := netnsInode(t, callerDir)

	forSources(t, func(t *testing.T, src Source) {
		s := snapshot(t, src, Query{Kind: conn.KindTCP})
		oneWith(t, s, here, conn.StatusListen)
		for _, c := range s.Conns {
			if c.PID == kid.pid || c.NetNS != home {
				t.Errorf("of another namespace: %+v", c)
			}
		}
		if s := snapshot(t, src, Query{Kind: conn.KindAll, PID: kid.pid}); len(s.Conns) != 0 {
			t.Errorf("of another namespace: %+v", s.Conns)
		}

		s = snapshot(t, src, Query{Kind: conn.KindTCP, AllNamespaces: true})
		if c := oneWith(t, s, here, conn.StatusListen); c.NetNS != home {
			t.Errorf("got %+v, want namespace %d", c, home)
		}
		found := 0
		for _, c := range s.Conns {
			if c.NetNS == inode {
				found++
				if c.PID != kid.pid || c.Laddr != there {
					t.Errorf("got %+v, want one of process %d", c, kid.pid)
				}
			}
		}
		if found != 1 {
			t.Errorf("%d rows of namespace %d", found, inode)
		}

		if s := snapshot(t, src, Query{Kind: conn.KindInet, PID: kid.pid, AllNamespaces: true}); len(s.Conns) != 1 {
			t.Errorf("got %+v", s.Conns)
		}
	})

	// No thread may have been left in the other namespace.
	threads, err := filepath.Glob("/proc/self/task/*")
	must(t, err)
	for _, thread := range threads {
		if ns, err := netnsOf(thread); err == nil && ns.inode != home {
			t.Errorf("%s is in namespace %d", thread, ns.inode)
		}
	}
}

func localListener(t testing.TB, kid child) conn.Addr {
	t.Helper()
	ap, err := netip.ParseAddrPort(kid.output)
	must(t, err)
	return conn.AddrFrom(ap)
}

// A socket belongs to the namespace of the calling thread, not of its process.
func TestCallersNamespace(t *testing.T) {
	outside := localAddr(t, listen(t, unix.AF_INET, [16]byte{}))
	unshareNet(t)
	inside := localAddr(t, listen(t, unix.AF_INET6, loopback6))
	for _, src := range sources(t) {
		s := snapshot(t, src, Query{Kind: conn.KindTCP})
		if c := oneWith(t, s, inside, conn.StatusListen); c.PID != int32(os.Getpid()) || c.NetNS != netnsInode(t, callerDir) {
			t.Errorf("%s: got %+v", src.Name(), c)
		}
		if rows := rowsWith(s, outside); rows != nil {
			t.Errorf("%s: got %+v", src.Name(), rows)
		}
	}
}

// A namespace that cannot be entered is a warning.
func TestNamespaceRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/ns", 0o755))
	for _, name := range []string{"/ns/net", "/net"} { // neither is what it ought to be
		must(t, os.WriteFile(dir+name, nil, 0o644))
	}
	refused := Namespace{dir: dir, inode: netnsInode(t, dir), foreign: true, enter: true}
	for _, src := range sources(t) {
		var s Snapshot
		if err := src.(*linuxSource).tables.Read(context.Background(), refused, conn.KindTCP, &s); err == nil {
			t.Errorf("%s: no error", src.Name())
		}
		if err := src.(*linuxSource).readOther(context.Background(), refused, conn.KindTCP, &s); err != nil {
			t.Errorf("%s: %v", src.Name(), err)
		}
		if len(s.Warnings) != 1 || len(s.Conns) != 0 || len(s.Namespaces) != 0 {
			t.Errorf("%s: warnings %v, %d rows, namespaces %d", src.Name(), s.Warnings, len(s.Conns), s.Namespaces)
		}
	}
}

// A namespace is read by way of any process that is in it. When the last one has gone,
// so has the namespace, and that is no warning.
func TestNamespaceLeft(t *testing.T) {
	back := unshareNet(t)
	kids := []child{startChild(t, "listen"), startChild(t, "listen")}
	back()
	inode := netnsInode(t, fmt.Sprintf("/proc/%d", kids[0].pid))
	for _, src := range sources(t) {
		var s Snapshot
		others, err := otherNamespaces("/proc", src.(*linuxSource).tables.Home(), &s)
		must(t, err)
		i := slices.IndexFunc(others, func(ns Namespace) bool { return ns.inode == inode })
		if i < 0 {
			t.Fatalf("%s: namespace %d is not among %+v", src.Name(), inode, others)
		}
		read := func(ns Namespace) (s Snapshot) {
			t.Helper()
			must(t, src.(*linuxSource).readOther(context.Background(), ns, conn.KindTCP, &s))
			return s
		}
		ns := others[i]
		gone := t.TempDir() // as good as the directory of a process that has ended
		elsewhere := callerDir
		for _, first := range []string{ns.dir, gone, elsewhere} {
			ns := ns
			ns.dir, ns.others = first, append([]string{gone}, ns.others...)
			if s := read(ns); len(s.Conns) != 2 || len(s.Warnings) != 0 || !slices.Equal(s.Namespaces, []uint32{inode}) {
				t.Errorf("%s: by way of %s: %d rows, warnings %v, namespaces %d", src.Name(), first, len(s.Conns), s.Warnings, s.Namespaces)
			}
		}
		ns.dir, ns.others = gone, []string{elsewhere}
		if s := read(ns); len(s.Conns) != 0 || len(s.Warnings) != 0 || len(s.Namespaces) != 0 {
			t.Errorf("%s: nobody is in it: %d rows, warnings %v, namespaces %d", src.Name(), len(s.Conns), s.Warnings, s.Namespaces)
		}
	}
}

// What a process holds is a row or a stray.
func TestStrays(t *testing.T) {
	tcp, udp := listen(t, unix.AF_INET, [16]byte{}), socket(t, unix.AF_INET, unix.SOCK_DGRAM)
	forSources(t, func(t *testing.T, src Source) {
		s := snapshot(t, src, Query{Kind: conn.KindTCP, AllNamespaces: true, Strays: true})
		oneWith(t, s, localAddr(t, tcp), conn.StatusListen)
		inode := func(fd int) uint64 {
			var st unix.Stat_t
			must(t, unix.Fstat(fd, &st))
			return st.Ino
		}
		if slices.Contains(s.Strays, inode(tcp)) || !slices.Contains(s.Strays, inode(udp)) {
			t.Errorf("strays %d have %d, or lack %d", s.Strays, inode(tcp), inode(udp))
		}
	})
}

// Another root than /proc is seen from its process 1.
func TestForeignRoot(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(root+"/1/net", 0o755))
	must(t, os.WriteFile(root+"/stat", []byte("cpu 0\nbtime 1700000000\n"), 0o644))
	must(t, os.MkdirAll(root+"/77/fd", 0o755))
	must(t, os.WriteFile(root+"/77/stat", []byte("77 (a b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"), 0o644))
	must(t, os.Symlink("socket:[21303]", root+"/77/fd/5"))
	must(t, os.Symlink("/dev/null", root+"/77/fd/0"))
	src, err := Procfs(root)
	must(t, err)

	if _, err := src.Snapshot(context.Background(), Query{Kind: conn.KindTCP4}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no table: %v", err)
	}
	const heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	must(t, os.WriteFile(root+"/1/net/tcp", []byte(heading+
		"   0: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000   999        0 21303 1 0\n"+
		"   1: nonsense\n"), 0o644))
	s := snapshot(t, src, Query{Kind: conn.KindTCP}) // tcp6 may be missing
	if len(s.Warnings) != 1 {
		t.Errorf("warnings %v", s.Warnings)
	}
	if len(s.Conns) != 1 {
		t.Fatalf("got %+v", s.Conns)
	}
	c := s.Conns[0]
	got := rowOf(c)
	want := row{5, conn.Inet, conn.Stream, conn.AddrIPv4(loopback4, 3306), conn.Addr{}, conn.StatusListen, 77}
	if got != want || c.UID != 999 || c.Process.Comm != "a b" || c.Process.Start.UnixMilli() != 1700000123450 {
		t.Errorf("got %+v %+v", c, c.Process)
	}
}
