package fallback

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// helperEnv makes the test binary a helper that holds descriptors for a test.
const helperEnv = "CONNTRACE_TEST_HELPER"

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperEnv); mode != "" {
		helper(mode)
		return
	}
	os.Exit(m.Run())
}

// helper does what mode says, tells its parent that it is ready, and stays until
// the parent closes its standard input.
func helper(mode string) {
	switch mode {
	case "hold": // keep the descriptors that the parent passed
	case "listen":
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		defer l.Close()
		fmt.Print(l.Addr(), " ")
	default:
		var n int
		var text string
		if _, err := fmt.Sscanf(mode, "connections %d", &n); err == nil {
			holdConnections(n)
		} else if _, err := fmt.Sscanf(mode, "churn %d %s", &n, &text); err == nil {
			churn(n, text)
		} else if _, err := fmt.Sscanf(mode, "host %s", &text); err == nil {
			host(text)
			return
		} else if _, err := fmt.Sscanf(mode, "container %d %s", &n, &text); err == nil {
			container(text, uint16(n))
			return
		} else {
			panic("unknown helper " + mode)
		}
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

// churn opens n connections one after the other, some of which live for long, and
// prints the local port and the life of each. The last one lives until standard input
// ends.
func churn(n int, addr string) {
	for i := range n {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			panic(err)
		}
		began := time.Now()
		if i < n-1 {
			time.Sleep(time.Duration(i*i) * 60 * time.Millisecond)
		} else {
			fmt.Println("last")
			io.Copy(io.Discard, os.Stdin)
		}
		life := time.Since(began)
		port := c.LocalAddr().(*net.TCPAddr).Port
		c.Close()
		fmt.Println(port, life.Nanoseconds())
	}
}

// holdConnections opens n connections over loopback and holds both ends of each.
func holdConnections(n int) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	for range n {
		client, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			panic(err)
		}
		server, err := l.Accept()
		if err != nil {
			panic(err)
		}
		heldConns = append(heldConns, client, server)
	}
}

var heldConns []net.Conn // by a helper

// A child is a process that runs [helper].
type child struct {
	pid    int32
	output string // what it printed before it was ready
}

// startChild starts a helper that inherits the files as descriptors 3 and up.
func startChild(t testing.TB, mode string, files ...*os.File) child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+mode)
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
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
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("helper %s: %v", mode, err)
	}
	output, _ := strings.CutSuffix(line, "ready\n")
	return child{pid: int32(cmd.Process.Pid), output: strings.TrimSpace(output)}
}

// sources returns every source of this system.
func sources(t testing.TB) []Source {
	t.Helper()
	var all []Source
	for _, open := range []func(string) (Source, error){Netlink, Procfs} {
		src, err := open("/proc")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, src)
	}
	return all
}

// forSources runs the test with each source.
func forSources(t *testing.T, f func(t *testing.T, src Source)) {
	for _, src := range sources(t) {
		t.Run(src.Name(), func(t *testing.T) { f(t, src) })
	}
}

func snapshot(t testing.TB, src Source, q Query) Snapshot {
	t.Helper()
	s, err := src.Snapshot(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rowsWith returns the rows with the local address.
func rowsWith(s Snapshot, laddr conn.Addr) []conn.Conn {
	var rows []conn.Conn
	for _, c := range s.Conns {
		if c.Laddr == laddr {
			rows = append(rows, c)
		}
	}
	return rows
}

// oneWith returns the only row with the local address and status.
func oneWith(t testing.TB, s Snapshot, laddr conn.Addr, status conn.Status) conn.Conn {
	t.Helper()
	rows := slices.DeleteFunc(rowsWith(s, laddr), func(c conn.Conn) bool { return c.Status != status })
	if len(rows) != 1 {
		t.Fatalf("%d rows of %v %v, want one: %+v", len(rows), laddr, status, rows)
	}
	return rows[0]
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}

// socket returns a raw descriptor of a socket, closed with the test.
func socket(t testing.TB, family, typ int) int {
	t.Helper()
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// must fails the test if err is one.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// localAddr returns the address that a socket is bound to.
func localAddr(t testing.TB, fd int) conn.Addr {
	t.Helper()
	// x/sys cuts abstract names at a NUL.
	var sa unix.RawSockaddrUnix
	size := uint32(unsafe.Sizeof(sa))
	_, _, errno := unix.Syscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		t.Fatal(errno)
	}
	if sa.Family != unix.AF_UNIX {
		sa, err := unix.Getsockname(fd)
		must(t, err)
		return inetAddr(t, sa)
	}
	name := string(unsafe.Slice((*byte)(unsafe.Pointer(&sa.Path)), size-2))
	if strings.HasPrefix(name, "\x00") {
		name = strings.ReplaceAll(name, "\x00", "@")
	}
	return conn.AddrUnix(strings.TrimSuffix(name, "\x00"))
}

// remoteAddr returns the address that a TCP or UDP socket is connected to.
func remoteAddr(t testing.TB, fd int) conn.Addr {
	t.Helper()
	sa, err := unix.Getpeername(fd)
	must(t, err)
	return inetAddr(t, sa)
}

func inetAddr(t testing.TB, sa unix.Sockaddr) conn.Addr {
	t.Helper()
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return conn.AddrIPv4(sa.Addr, uint16(sa.Port))
	case *unix.SockaddrInet6:
		return conn.AddrIPv6(sa.Addr, uint16(sa.Port))
	}
	t.Fatalf("unexpected address %T", sa)
	return conn.Addr{}
}
