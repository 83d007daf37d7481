package tracker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// The test binary is also the programs that are watched: with helperEnv set it is
// one of helpers instead.
const helperEnv = "CONNTRACE_TEST_HELPER"

// A helper reads commands from r, a word each, and answers each with a line.
var helpers = map[string]func(r *bufio.Scanner, w io.Writer) error{
	"server":   helperServer,
	"client":   helperClient,
	"self":     helperSelf,
	"worker":   helperWorker,
	"connect":  helperConnect,
	"holder":   helperHolder,
	"idle":     helperIdle,
	"fastopen": helperFastOpen,
}

// forced are the hooks that trackers are to use unless a test chooses them.
var forced = flag.String("hooks", "", "force these `HOOKS`, as conntrace --hooks does")

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		in := bufio.NewScanner(os.Stdin)
		in.Split(bufio.ScanWords)
		if err := helpers[name](in, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helperServer listens on the address that it is told, answers where, and serves:
// it sends back what it receives and closes when the peer has. To whatever it is told
// then it answers how many connections it has accepted.
func helperServer(r *bufio.Scanner, w io.Writer) error {
	r.Scan()
	l, err := listen(r.Text())
	if err != nil {
		return err
	}
	fmt.Fprintln(w, l.Addr())
	var accepted atomic.Int64
	go serve(l, &accepted)
	for r.Scan() { // until stdin is closed
		fmt.Fprintln(w, accepted.Load())
	}
	return nil
}

// helperWorker serves the listener that it has inherited as descriptor 3.
func helperWorker(r *bufio.Scanner, w io.Writer) error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	fmt.Fprintln(w, l.Addr())
	go serve(l, new(atomic.Int64))
	for r.Scan() {
	}
	return nil
}

func serve(l net.Listener, accepted *atomic.Int64) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		accepted.Add(1)
		go func() {
			io.Copy(c, c)
			c.Close()
		}()
	}
}

// helperClient is told "ADDRESS N" again and again: it makes N connections there
// one after the other, and answers how many succeeded.
func helperClient(r *bufio.Scanner, w io.Writer) error {
	for r.Scan() {
		address := r.Text()
		r.Scan()
		n := 0
		fmt.Sscan(r.Text(), &n)
		ok := 0
		for range n {
			c, err := net.Dial("tcp", address)
			if err == nil {
				ok++
				c.Close()
			}
		}
		fmt.Fprintln(w, ok)
	}
	return r.Err()
}

// helperSelf is told "ADDRESS N": it listens there, and makes N connections with
// itself that it keeps. It answers where.
func helperSelf(r *bufio.Scanner, w io.Writer) error {
	for r.Scan() {
		l, err := listen(r.Text())
		if err != nil {
			return err
		}
		go serve(l, new(atomic.Int64))
		r.Scan()
		n := 0
		fmt.Sscan(r.Text(), &n)
		for range n {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := fmt.Fprintln(c, "accepted?"); err != nil {
				return err
			}
			if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
				return err
			}
		}
		fmt.Fprintln(w, l.Addr())
	}
	return r.Err()
}

// listen listens by plain TCP: net.Listen would use MPTCP.
func listen(address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	return lc.Listen(context.Background(), "tcp", address)
}

// A process is a running helper.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func start(t *testing.T, helper string, files ...*os.File) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), helperEnv+"="+helper)
	p.cmd.Stderr = os.Stderr
	p.cmd.ExtraFiles = files
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p
}

// startElsewhere starts a helper in a network namespace of its own, whose inode
// number it returns.
func startElsewhere(t *testing.T, helper string) (p *process, netns uint32) {
	t.Helper()
	testenv.Root(t)
	done := make(chan struct{})
	go func() { // a thread of its own, which ends with the goroutine
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error("unshare:", err)
			return
		}
		if err := loopbackUp(); err != nil {
			t.Error("lo:", err)
			return
		}
		var st unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
			t.Error(err)
			return
		}
		netns = uint32(st.Ino)
		p = start(t, helper) // inherits the thread's namespace
	}()
	<-done
	if p == nil {
		t.FailNow()
	}
	return p, netns
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

func (p *process) pid() int32 { return int32(p.cmd.Process.Pid) }

// ask sends a command and returns the answer.
func (p *process) ask(command ...any) string {
	p.t.Helper()
	if len(command) > 0 {
		fmt.Fprintln(p.in, command...)
	}
	if !p.out.Scan() {
		p.t.Fatalf("helper has ended: %v", p.out.Err())
	}
	return p.out.Text()
}

func (p *process) stop() {
	p.in.Close()
	p.cmd.Wait()
}

// ---- trackers ----------------------------------------------------------------

// open opens a tracker that must be fed by BPF, for the length of the test; by the
// hooks that -hooks names, separated by commas, if it does.
func open(t *testing.T, cfg tracker.Config) *tracker.Tracker {
	t.Helper()
	testenv.Root(t)
	cfg.Source = tracker.SourceEBPF
	if *forced != "" && cfg.Hooks == nil {
		cfg.Hooks = strings.Split(*forced, ",")
	}
	tr, err := tracker.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

// acceptedFD returns what events say of the descriptor fd that accept(2) returned:
// -1 where accepts are seen in inet_csk_accept(), when the socket has neither a
// descriptor nor an inode yet.
func acceptedFD(tr *tracker.Tracker, fd int32) int32 {
	if attached(tr, "fexit/inet_csk_accept") || attached(tr, "kretprobe/inet_csk_accept") {
		return -1
	}
	return fd
}

// attached reports whether tr has a program at the attach point.
func attached(tr *tracker.Tracker, where string) bool {
	return slices.ContainsFunc(tr.Info().Hooks, func(h tracker.Hook) bool { return h.Attach == where })
}

// limited reports whether tr says that it cannot see something.
func limited(tr *tracker.Tracker, what string) bool {
	return slices.ContainsFunc(tr.Info().Limits, func(s string) bool { return strings.Contains(s, what) })
}

// A stream reads a subscription in the background, so that it is never slow.
type stream struct {
	t   *testing.T
	sub *tracker.Subscription
}

func subscribe(t *testing.T, tr *tracker.Tracker, f tracker.Filter) *stream {
	t.Helper()
	sub, err := tr.Subscribe(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sub.Close() })
	return &stream{t, sub}
}

// next returns the next event that ok accepts, and fails the test if there is none
// for a long time.
func (s *stream) next(what string, ok func(*conn.Event) bool) conn.Event {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	var passed []string
	for {
		e, err := s.sub.Next(ctx)
		if err != nil {
			s.t.Fatalf("no %s: %v; passed over:\n%s", what, err, strings.Join(passed, "\n"))
		}
		if ok(&e) {
			return e
		}
		passed = append(passed, describe(&e))
	}
}

// event returns the next event of type kind.
func (s *stream) event(kind conn.EventType) conn.Event {
	s.t.Helper()
	return s.next(kind.String()+" event", func(e *conn.Event) bool { return e.Type == kind })
}

// rest returns everything that is there up to now. The tracker's Stats have the
// side effect that it is.
func (s *stream) rest(tr *tracker.Tracker) []conn.Event {
	s.t.Helper()
	tr.Stats()
	ctx, cancel := context.WithCancel(s.t.Context())
	cancel()
	var events []conn.Event
	for {
		e, err := s.sub.Next(ctx)
		if err != nil {
			return events
		}
		events = append(events, e)
	}
}

func describe(e *conn.Event) string {
	b, _ := json.Marshal(struct {
		Type         conn.EventType
		Laddr, Raddr string
		PID, FD      int32
		Status       conn.Status
		Cookie       uint64
	}{e.Type, e.Laddr.String(), e.Raddr.String(), e.PID, e.FD, e.Status, e.Cookie})
	return string(b)
}

// ---- sockets -----------------------------------------------------------------

// A pair is a connection of this process with itself.
type pair struct {
	listener       net.Listener
	client, server *net.TCPConn
}

func connect(t *testing.T, network, address string) pair {
	t.Helper()
	l, err := listen(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return dial(t, l, network, l.Addr().String())
}

func dial(t *testing.T, l net.Listener, network, address string) pair {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return pair{l, c.(*net.TCPConn), s.(*net.TCPConn)}
}

// fdOf returns the descriptor number of a connection or listener.
func fdOf(t *testing.T, c syscall.Conn) int32 {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := int32(-1)
	if err := raw.Control(func(fd uintptr) { n = int32(fd) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func port(a net.Addr) uint16 { return a.(*net.TCPAddr).AddrPort().Port() }

func addr(a net.Addr) conn.Addr {
	ap := a.(*net.TCPAddr).AddrPort()
	return conn.AddrFrom(netip.AddrPortFrom(ap.Addr().WithZone(""), ap.Port()))
}

// refusedPort returns a port on which nobody listens: bound, not listening.
func refusedPort(t *testing.T) uint16 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(sa.(*unix.SockaddrInet4).Port)
}

// eventually fails the test unless ok turns true within a long time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
