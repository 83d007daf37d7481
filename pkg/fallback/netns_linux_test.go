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
func TestNamespaceGone(t *testing.T) {
	for _, src := range sources(t) {
		tables := src.(*linuxSource).tables
		gone := Namespace{dir: t.TempDir(), inode: 1, foreign: true, enter: true}
		var s Snapshot
		if err := tables.Read(context.Background(), gone, conn.KindTCP, &s); err == nil {
			t.Errorf("%s: no error", src.Name())
		}
		all := &linuxSource{root: "/proc", tables: withHome{tables, gone}}
		if err := all.readTables(context.Background(), Query{Kind: conn.KindTCP, AllNamespaces: true}, &s); err != nil {
			t.Errorf("%s: %v", src.Name(), err)
		}
		if len(s.Warnings) == 0 {
			t.Errorf("%s: no warning", src.Name())
		}
	}
}

// withHome is Tables with another home.
type withHome struct {
	Tables
	ns Namespace
}

func (w withHome) Home() Namespace { return w.ns }

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
