package fallback

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
)

// dup returns an os.File of a duplicate of fd, for a child to inherit.
func dup(t testing.TB, fd int) *os.File {
	t.Helper()
	nfd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	f := os.NewFile(uintptr(nfd), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

func ascending(a, b int) []int32 { return []int32{int32(min(a, b)), int32(max(a, b))} }

func TestShared(t *testing.T) {
	fd := listen(t, unix.AF_INET, [16]byte{})
	ufd := socket(t, unix.AF_UNIX, unix.SOCK_STREAM)
	name := t.TempDir() + "/s"
	must(t, unix.Bind(ufd, &unix.SockaddrUnix{Name: name}))
	f, uf := dup(t, fd), dup(t, ufd)
	self := int32(os.Getpid())
	a := startChild(t, "hold", f, f, uf, uf).pid // as descriptors 3 to 6
	b := startChild(t, "hold", f, uf).pid        // as 3 and 4
	highest := max(self, a, b)

	// What each process holds of the two sockets.
	held := map[int32]map[int][]int32{
		self: {fd: ascending(fd, int(f.Fd())), ufd: ascending(ufd, int(uf.Fd()))},
		a:    {fd: {3, 4}, ufd: {5, 6}},
		b:    {fd: {3}, ufd: {4}},
	}
	holders := func(fd int) (all []conn.Holder) {
		for _, pid := range slices.Sorted(maps.Keys(held)) {
			for _, n := range held[pid][fd] {
				all = append(all, conn.Holder{PID: pid, FD: n})
			}
		}
		return all
	}

	forSources(t, func(t *testing.T, src Source) {
		for _, pid := range []int32{0, self, a, b} {
			s := snapshot(t, src, Query{Kind: conn.KindAll, PID: pid, Holders: true})
			owner := pid
			if pid == 0 {
				owner = highest
			}
			c := oneWith(t, s, localAddr(t, fd), conn.StatusListen)
			if want := held[owner][fd][0]; c.PID != owner || c.FD != want {
				t.Errorf("pid %d: inet socket: owner (%d, %d), want (%d, %d)", pid, c.PID, c.FD, owner, want)
			}
			if !slices.Equal(c.Holders, holders(fd)) {
				t.Errorf("pid %d: inet socket: holders %v, want %v", pid, c.Holders, holders(fd))
			}
			var fds []int32
			for _, c := range rowsWith(s, conn.AddrUnix(name)) {
				if c.PID != owner {
					t.Errorf("pid %d: unix socket: owner %d, want %d", pid, c.PID, owner)
				}
				if !slices.Equal(c.Holders, holders(ufd)) {
					t.Errorf("pid %d: unix socket: holders %v, want %v", pid, c.Holders, holders(ufd))
				}
				fds = append(fds, c.FD)
			}
			slices.Sort(fds)
			if !slices.Equal(fds, held[owner][ufd]) {
				t.Errorf("pid %d: unix socket: descriptors %v, want %v", pid, fds, held[owner][ufd])
			}
			for _, c := range s.Conns {
				if pid != 0 && c.PID != pid {
					t.Errorf("pid %d: row of %d", pid, c.PID)
				}
			}
		}
	})
}

// A socket that is on its way in a message belongs to nobody.
func TestInFlight(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	fd := listen(t, unix.AF_INET, [16]byte{})
	laddr := localAddr(t, fd)
	must(t, unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, 0))
	unix.Close(fd)
	forSources(t, func(t *testing.T, src Source) {
		c := oneWith(t, snapshot(t, src, Query{Kind: conn.KindTCP}), laddr, conn.StatusListen)
		if c.PID != 0 || c.FD != -1 || c.Process != nil || c.Inode == 0 {
			t.Errorf("got %+v", c)
		}
	})
}

// Two listeners with one address and no owner are one row.
func TestUnownedCollapse(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	var laddr conn.Addr
	for range 3 {
		fd := socket(t, unix.AF_INET, unix.SOCK_STREAM)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		must(t, unix.Bind(fd, sockaddr(unix.AF_INET, [16]byte{}, laddr.Port())))
		must(t, unix.Listen(fd, 1))
		laddr = localAddr(t, fd)
		must(t, unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, 0))
		unix.Close(fd)
	}
	forSources(t, func(t *testing.T, src Source) {
		oneWith(t, snapshot(t, src, Query{Kind: conn.KindTCP}), laddr, conn.StatusListen)
	})
}

// An MPTCP listener is one TCP listener, with its owner, and so are both ends of
// a connection over it.
func TestMPTCP(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		testenv.Missing(t, "MPTCP: "+err.Error())
	}
	defer unix.Close(fd)
	must(t, unix.Bind(fd, sockaddr(unix.AF_INET, [16]byte{}, 0)))
	must(t, unix.Listen(fd, 4))
	laddr := localAddr(t, fd)
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	must(t, err)
	defer unix.Close(client)
	must(t, unix.Connect(client, sockaddr(unix.AF_INET, [16]byte{}, laddr.Port())))
	server := accept(t, fd)

	forSources(t, func(t *testing.T, src Source) {
		s := snapshot(t, src, Query{Kind: conn.KindAll})
		for _, want := range []struct {
			fd     int
			laddr  conn.Addr
			status conn.Status
		}{
			{fd, laddr, conn.StatusListen},
			{server, laddr, conn.StatusEstablished},
			{client, localAddr(t, client), conn.StatusEstablished},
		} {
			c := oneWith(t, s, want.laddr, want.status)
			if c.FD != int32(want.fd) || c.PID != int32(os.Getpid()) || c.Kind() != conn.KindTCP4 {
				t.Errorf("got %+v, want descriptor %d", c, want.fd)
			}
		}
	})
}

// Go listens with MPTCP by default.
func TestGoListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	laddr := conn.AddrFrom(l.Addr().(*net.TCPAddr).AddrPort())
	forSources(t, func(t *testing.T, src Source) {
		c := oneWith(t, snapshot(t, src, Query{Kind: conn.KindTCP}), laddr, conn.StatusListen)
		if c.PID != int32(os.Getpid()) {
			t.Errorf("owner %d", c.PID)
		}
	})
}

func TestNoSuchProcess(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := make(chan int)
	done := make(chan struct{})
	defer close(done)
	for range 2 { // one of them is not the thread-group leader
		go func() {
			runtime.LockOSThread()
			tid <- unix.Gettid()
			<-done
			runtime.UnlockOSThread()
		}()
	}
	thread := <-tid
	if other := <-tid; thread == os.Getpid() {
		thread = other
	}
	forSources(t, func(t *testing.T, src Source) {
		for _, pid := range []int32{-1, math.MaxInt32, int32(thread)} {
			s, err := src.Snapshot(context.Background(), Query{Kind: conn.KindAll, PID: pid})
			if !errors.Is(err, conn.ErrNoSuchProcess) || s.Conns != nil {
				t.Errorf("pid %d: %v, %v", pid, s.Conns, err)
			}
		}
	})
}

// The kind is looked at before anything else.
func TestBadKind(t *testing.T) {
	forSources(t, func(t *testing.T, src Source) {
		for _, kind := range []conn.Kind{0, conn.KindAll + 1} {
			_, err := src.Snapshot(context.Background(), Query{Kind: kind, PID: math.MaxInt32})
			if err == nil || !strings.Contains(err.Error(), "inet4") {
				t.Errorf("kind %d: %v", kind, err)
			}
		}
	})
}

func TestZombie(t *testing.T) {
	cmd := exec.Command("true")
	must(t, cmd.Start())
	pid := int32(cmd.Process.Pid)
	defer cmd.Wait()
	eventually(t, "a zombie", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(t, err)
		return strings.Contains(string(stat), ") Z ")
	})
	forSources(t, func(t *testing.T, src Source) {
		s, err := src.Snapshot(context.Background(), Query{Kind: conn.KindAll, PID: pid})
		if os.Getuid() != 0 {
			if !errors.Is(err, fs.ErrPermission) {
				t.Errorf("got %v, %v", s.Conns, err)
			}
		} else if err != nil || len(s.Conns) != 0 {
			t.Errorf("got %v, %v", s.Conns, err)
		}
	})
}

func TestKernelThread(t *testing.T) {
	testenv.Root(t)
	const kthreadd = 2
	if exe, err := os.Readlink("/proc/2/exe"); !errors.Is(err, fs.ErrNotExist) {
		testenv.Missing(t, "kthreadd, but process 2 is "+exe)
	}
	forSources(t, func(t *testing.T, src Source) {
		s, err := src.Snapshot(context.Background(), Query{Kind: conn.KindAll, PID: kthreadd})
		if err != nil || len(s.Conns) != 0 {
			t.Errorf("got %v, %v", s.Conns, err)
		}
	})
}

// asUserEnv tells the test what it shall find when root runs it as an ordinary
// user: a process and the address that it listens on.
const asUserEnv = "CONNTRACE_TEST_TARGET"

// An ordinary user sees the sockets of others, without their owners.
func TestAccessDenied(t *testing.T) {
	if os.Geteuid() == 0 {
		laddr := localAddr(t, listen(t, unix.AF_INET, [16]byte{}))
		// The directory of the test binary may be closed to other users.
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestAccessDenied$", "-test.v")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %v", asUserEnv, os.Getpid(), laddr))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestAccessDenied") {
			t.Fatalf("as an ordinary user: %v\n%s", err, out)
		}
		return
	}
	pid, target := int32(1), ""
	if env := os.Getenv(asUserEnv); env != "" {
		_, err := fmt.Sscan(env, &pid, &target)
		must(t, err)
	}
	forSources(t, func(t *testing.T, src Source) {
		_, err := src.Snapshot(context.Background(), Query{Kind: conn.KindTCP, PID: pid})
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("process %d: %v", pid, err)
		}
		s := snapshot(t, src, Query{Kind: conn.KindTCP})
		if s.Hidden == 0 {
			t.Error("no process is hidden")
		}
		if target != "" {
			c := oneWith(t, s, conn.AddrFrom(netip.MustParseAddrPort(target)), conn.StatusListen)
			if c.PID != 0 || c.FD != -1 {
				t.Errorf("got %+v", c)
			}
		}
	})
}
