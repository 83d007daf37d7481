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

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// eachSource runs the test with each source in a network namespace of its own, where
// nothing else happens.
func eachSource(t *testing.T, f func(t *testing.T, src Source)) {
	forSources(t, func(t *testing.T, src Source) {
		unshareNet(t)
		f(t, src)
	})
}

// newPoller returns a poller that has looked once.
func newPoller(t *testing.T, src Source) *Poller {
	t.Helper()
	p := NewPoller(src, Query{Kind: conn.KindTCP})
	t.Cleanup(func() { p.Close() })
	poll(t, p)
	return p
}

func poll(t *testing.T, p *Poller) []conn.Event {
	t.Helper()
	events, err := p.Poll(context.Background())
	must(t, err)
	return events
}

// closes returns what the kernel tells until there are n events.
func closes(t *testing.T, p *Poller, n int) (all []conn.Event) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d closes", n), func() bool {
		events, err := p.Closes()
		must(t, err)
		all = append(all, events...)
		return len(all) >= n
	})
	return all
}

// kinds returns type and direction of events, sorted.
func kinds(events []conn.Event) (all []string) {
	for _, e := range events {
		all = append(all, e.Type.String()+" "+e.Direction.String())
	}
	slices.Sort(all)
	return all
}

// TestPollerSockets polls while a connection comes and goes.
func TestPollerSockets(t *testing.T) {
	eachSource(t, func(t *testing.T, src Source) {
		p := newPoller(t, src)
		expect := func(when string, want ...string) {
			t.Helper()
			events := poll(t, p)
			for _, e := range events {
				if e.PID != int32(os.Getpid()) || e.Process == nil || e.FD < 0 {
					t.Errorf("%s: %v of process %d", when, e.Type, e.PID)
				}
			}
			if got := kinds(events); !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", when, got, want)
			}
		}
		l := listen(t, unix.AF_INET, [16]byte{})
		expect("listen", "listen unknown")
		client := connect(t, unix.AF_INET, [16]byte{}, localAddr(t, l).Port())
		expect("connect", "connect outbound")
		server := accept(t, l)
		expect("accept", "accept inbound")
		expect("nothing")
		must(t, unix.Shutdown(client, unix.SHUT_WR))
		must(t, unix.Shutdown(server, unix.SHUT_WR))
		waitState(t, client, conn.StatusClose)
		waitState(t, server, conn.StatusClose)
		expect("close", "close inbound", "close outbound") // although the descriptors are there still
		expect("TIME_WAIT")
		must(t, unix.Close(client))
		must(t, unix.Close(server))
		expect("destroyed")
		if s := p.Stats(); s.Missed != 0 || s.ShortLived != 0 || s.Ownerless != 0 || s.Sockets != 1 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// TestPollerCloses: the kernel tells of the end of a connection at once, and how it
// went.
func TestPollerCloses(t *testing.T) {
	unshareNet(t)
	src, err := Netlink("/proc")
	must(t, err)
	p := NewPoller(src, Query{Kind: conn.KindTCP})
	p.Interval = time.Hour
	defer p.Close()
	poll(t, p)
	l := listen(t, unix.AF_INET, [16]byte{})
	client := connect(t, unix.AF_INET, [16]byte{}, localAddr(t, l).Port())
	server := accept(t, l)
	if got := kinds(poll(t, p)); len(got) != 3 {
		t.Fatalf("got %q", got)
	}
	_, err = unix.Write(client, make([]byte, 1000))
	must(t, err)
	_, err = unix.Read(server, make([]byte, 2000))
	must(t, err)
	must(t, unix.Close(client))
	waitState(t, server, conn.StatusCloseWait)
	must(t, unix.Close(server))
	for range 2 {
		must(t, p.Wait(t.Context())) // not an hour
	}
	for _, e := range closes(t, p, 2) {
		sent, received := uint64(1000), uint64(0)
		if e.Direction == conn.Inbound {
			sent, received = received, sent
		}
		if e.Type != conn.EventClose || e.PID != int32(os.Getpid()) || e.Close == nil {
			t.Fatalf("got %+v", e)
		}
		if c := e.Close; c.BytesSent != sent || c.BytesReceived != received || c.Reason != conn.ReasonFin || c.RTT <= 0 || c.Duration != -1 {
			t.Errorf("%v: got %+v", e.Direction, c)
		}
	}
	// Between two looks: a connection that nobody has seen, and one that is reset.
	client = connect(t, unix.AF_INET, [16]byte{}, localAddr(t, l).Port())
	server = accept(t, l)
	_, err = unix.Write(server, make([]byte, 7))
	must(t, err)
	must(t, unix.Close(client)) // with data that was not read: a RST
	waitState(t, server, conn.StatusClose)
	must(t, unix.Close(server))
	events := closes(t, p, 2)
	if got := kinds(events); !slices.Equal(got, []string{"close inbound", "close outbound"}) {
		t.Errorf("got %q", got)
	}
	for _, e := range events {
		if e.PID != 0 || e.Close == nil || e.Close.Reason != conn.ReasonReset || e.Cookie == 0 {
			t.Errorf("got %+v %+v", e, e.Close)
		}
	}
	if events := poll(t, p); len(events) != 0 {
		t.Errorf("told twice: %q", kinds(events))
	}
	must(t, unix.Close(l))
	if got := kinds(closes(t, p, 1)); !slices.Equal(got, []string{"close unknown"}) {
		t.Errorf("got %q", got)
	}
	if s := p.Stats(); s.Missed != 0 || s.ShortLived != 2 || s.Sockets != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// TestPollerDevice: the kernel is asked for a socket that is bound to an interface
// by that too.
func TestPollerDevice(t *testing.T) {
	unshareNet(t)
	src, err := Netlink("/proc")
	must(t, err)
	p := newPoller(t, src)
	l := listen(t, unix.AF_INET, [16]byte{})
	client := socket(t, unix.AF_INET, unix.SOCK_STREAM)
	must(t, unix.BindToDevice(client, "lo"))
	must(t, unix.Connect(client, sockaddr(unix.AF_INET, [16]byte{}, localAddr(t, l).Port())))
	server := accept(t, l)
	poll(t, p)
	o := p.observer.(*linuxObserver)
	for _, s := range p.sockets {
		if !o.exists(&s.Conn) {
			t.Errorf("%v to %v does not exist", s.Laddr, s.Raddr)
		}
		if s.phase == connected && o.openedBy(&s.Conn) != s.direction {
			t.Errorf("%v to %v: opened by %v, want %v", s.Laddr, s.Raddr, o.openedBy(&s.Conn), s.direction)
		}
	}
	for _, s := range p.sockets {
		c := s.Conn
		if c.Cookie++; s.phase == connected && o.exists(&c) {
			t.Errorf("%v to %v exists with another cookie", c.Laddr, c.Raddr)
		}
	}
	must(t, unix.Close(client))
	must(t, unix.Shutdown(server, unix.SHUT_WR)) // else the kernel may keep the client in FIN_WAIT2 for a minute
	closes(t, p, 1)
}

// TestPollerFailed: an attempt that fails between two looks is told if its socket
// still knows where it was to go.
func TestPollerFailed(t *testing.T) {
	unshareNet(t)
	src, err := Netlink("/proc")
	must(t, err)
	p := newPoller(t, src)
	fd := socket(t, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, [16]byte{}, 9)); err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	waitState(t, fd, conn.StatusClose)
	must(t, unix.Close(fd))
	if e := closes(t, p, 1)[0]; e.Type != conn.EventFail || e.Direction != conn.Outbound || e.Raddr.Port() != 9 {
		t.Errorf("got %+v", e)
	}
	socket(t, unix.AF_INET, unix.SOCK_STREAM)
	if events := poll(t, p); len(events) != 0 || p.Stats().Missed != 0 {
		t.Errorf("got %q, %+v", kinds(events), p.Stats())
	}
}

// TestPollerClosesLost: what the kernel has no room for is counted, to the last one.
func TestPollerClosesLost(t *testing.T) {
	unshareNet(t)
	src, err := Netlink("/proc")
	must(t, err)
	p := newPoller(t, src)
	o := p.observer.(*linuxObserver)
	must(t, o.destroy.close())
	o.destroy, err = openDestroyReader(o.ns, 1)
	must(t, err)
	l := listen(t, unix.AF_INET, [16]byte{})
	poll(t, p)
	const connections = 200
	for range connections {
		client := connect(t, unix.AF_INET, [16]byte{}, localAddr(t, l).Port())
		server := accept(t, l)
		must(t, unix.Close(client))
		must(t, unix.Close(server))
	}
	var told, lost uint64
	eventually(t, "all closes, or their loss", func() bool {
		events, err := p.Closes()
		must(t, err)
		for _, e := range events {
			switch e.Type {
			case conn.EventGap:
				lost += e.Lost
			case conn.EventClose:
				told++
			default:
				t.Errorf("got %s", e.Type)
			}
		}
		return told+lost >= 2*connections
	})
	if told+lost != 2*connections || lost == 0 || told == 0 || p.Stats().Lost != lost {
		t.Errorf("%d told, %d lost, stats %+v", told, lost, p.Stats())
	}
	poll(t, p)
	if s := p.Stats(); s.Missed != int64(lost) {
		t.Errorf("%d lost, stats %+v", lost, s)
	}
}

// TestPollerMissed: the kernel's counters tell how many connections came and went
// unseen.
func TestPollerMissed(t *testing.T) {
	unshareNet(t)
	src, err := Procfs("/proc")
	must(t, err)
	l := listen(t, unix.AF_INET, [16]byte{})
	p := newPoller(t, src)
	const missed = 20
	for range missed {
		client := connect(t, unix.AF_INET, [16]byte{}, localAddr(t, l).Port())
		must(t, unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		server := accept(t, l)
		must(t, unix.Close(client)) // nothing remains in TIME_WAIT
		must(t, unix.Close(server))
	}
	connect(t, unix.AF_INET, [16]byte{}, localAddr(t, l).Port())
	accept(t, l)
	if got := kinds(poll(t, p)); !slices.Equal(got, []string{"accept inbound", "connect outbound"}) {
		t.Errorf("got %q", got)
	}
	if s := p.Stats(); s.Missed != 2*missed {
		t.Errorf("stats: %+v", s)
	}
	// Of one that leaves a socket in TIME_WAIT the end is seen.
	shortLived := connect(t, unix.AF_INET, [16]byte{}, localAddr(t, l).Port())
	server := accept(t, l)
	must(t, unix.Shutdown(shortLived, unix.SHUT_WR))
	must(t, unix.Shutdown(server, unix.SHUT_WR))
	waitState(t, shortLived, conn.StatusClose)
	if got := kinds(poll(t, p)); !slices.Equal(got, []string{"close outbound"}) {
		t.Errorf("got %q", got)
	}
	if s := p.Stats(); s.Missed != 2*missed+1 || s.ShortLived != 1 {
		t.Errorf("stats: %+v", s)
	}
}

// TestPollerQuiet: as long as the kernel's counters stand still, the tables are not
// looked at; once they move they are.
func TestPollerQuiet(t *testing.T) {
	eachSource(t, func(t *testing.T, src Source) {
		l := listen(t, unix.AF_INET, [16]byte{})
		began := time.Now()
		p := newPoller(t, src)
		p.Interval = 200 * time.Millisecond
		next := func() []conn.Event {
			t.Helper()
			must(t, p.Wait(t.Context()))
			events, err := p.Next(t.Context())
			must(t, err)
			return events
		}
		for i := range 3 {
			if events := next(); len(events) != 0 {
				t.Errorf("got %q", kinds(events))
			}
			if looks, late := p.Stats().Looks, time.Since(began) >= maxQuiet*p.Interval; looks != 1 && !late {
				t.Errorf("%d looks after %d intervals", looks, i+1)
			}
		}
		connect(t, unix.AF_INET, [16]byte{}, localAddr(t, l).Port())
		accept(t, l)
		if got := kinds(next()); !slices.Equal(got, []string{"accept inbound", "connect outbound"}) {
			t.Errorf("got %q", got)
		}
		l2 := listen(t, unix.AF_INET6, loopback6)
		if got := kinds(next()); !slices.Equal(got, []string{"listen unknown"}) {
			t.Errorf("got %q", got)
		}
		must(t, unix.Close(l2))
		var got []string
		eventually(t, "the listener's close", func() bool { got = append(got, kinds(next())...); return len(got) > 0 })
		if !slices.Equal(got, []string{"close unknown"}) {
			t.Errorf("got %q", got)
		}
	})
}

// TestPollerDirection: a listener that came and went between two looks, and both of
// whose ends are here, does not make a wrong direction.
func TestPollerDirection(t *testing.T) {
	eachSource(t, func(t *testing.T, src Source) {
		p := newPoller(t, src)
		// open opens a connection to a port, and leaves no listener.
		open := func(port uint16) []string {
			l := socket(t, unix.AF_INET, unix.SOCK_STREAM)
			must(t, unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			must(t, unix.Bind(l, sockaddr(unix.AF_INET, [16]byte{}, port)))
			must(t, unix.Listen(l, 1))
			client := connect(t, unix.AF_INET, [16]byte{}, localAddr(t, l).Port())
			server := accept(t, l)
			must(t, unix.Close(l))
			local := localAddr(t, client)
			var got []string
			for _, e := range poll(t, p) {
				end := "server "
				if e.Laddr == local {
					end = "client "
				}
				got = append(got, end+e.Type.String()+" "+e.Direction.String())
			}
			must(t, unix.Close(client))
			must(t, unix.Close(server))
			slices.Sort(got)
			return got
		}
		if got := open(80); !slices.Equal(got, []string{"client connect outbound", "server accept inbound"}) {
			t.Errorf("got %q", got)
		}
		want := []string{"client connect outbound", "server accept inbound"}
		if src.Name() == "procfs" { // both ports are the system's choice: nobody can tell
			want = []string{"client connect unknown", "server connect unknown"}
		}
		got := slices.DeleteFunc(open(0), func(s string) bool { return strings.Contains(s, "close") })
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// TestPollerChurn: every connection that lives longer than the time between two
// looks is seen, with the processes at both ends.
func TestPollerChurn(t *testing.T) {
	eachSource(t, func(t *testing.T, src Source) {
		const clients, each = 3, 7
		p := newPoller(t, src)
		p.Interval = 30 * time.Millisecond
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					c.Read(make([]byte, 1))
					c.Close()
				}()
			}
		}()
		type line struct {
			pid  int32
			text string
		}
		lines := make(chan line, 2*clients*each)
		var last []io.Closer // each ends the last connection of a client
		for range clients {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=churn %d %s", helperEnv, each, l.Addr()))
			cmd.Stderr = os.Stderr
			stdin, err := cmd.StdinPipe()
			must(t, err)
			stdout, err := cmd.StdoutPipe()
			must(t, err)
			last = append(last, stdin)
			must(t, cmd.Start()) // in this thread's namespace
			go func() {
				for scan := bufio.NewScanner(stdout); scan.Scan(); {
					lines <- line{int32(cmd.Process.Pid), scan.Text()}
				}
				cmd.Wait()
			}()
		}
		seen := make(map[string]int32) // PID by type and local port
		type life struct {
			pid  int32
			port uint16
			time time.Duration
			last bool
		}
		var lives []life
		patience := time.Now().Add(2 * time.Minute)
		for waiting, done := 0, 0; done < clients; {
			if time.Now().After(patience) {
				t.Fatal("not done in 2 min")
			}
			must(t, p.Wait(t.Context()))
			events, err := p.Next(t.Context())
			must(t, err)
			for _, e := range events {
				port := e.Laddr.Port()
				if e.Direction == conn.Inbound {
					port = e.Raddr.Port()
				}
				seen[fmt.Sprint(e.Type, port)] = e.PID
			}
			// The last connections stay until a look has begun after the last one was opened.
			if waiting == clients && p.quiet() {
				for _, c := range last {
					c.Close()
				}
				last = nil
			}
			for len(lines) > 0 {
				line := <-lines
				c := life{pid: line.pid, last: last == nil}
				switch line.text {
				case "last":
					waiting++
				case "ready":
					done++
				default:
					if _, err := fmt.Sscan(line.text, &c.port, (*int64)(&c.time)); err != nil {
						t.Fatalf("%q: %v", line.text, err)
					}
					lives = append(lives, c)
				}
			}
		}
		if len(lives) != clients*each {
			t.Fatalf("%d connections", len(lives))
		}
		longest := p.Stats().Longest
		judged := 0
		for _, c := range lives {
			if c.time <= longest && !c.last {
				continue
			}
			judged++
			if pid := seen[fmt.Sprint(conn.EventConnect, c.port)]; pid != c.pid {
				t.Errorf("connection of process %d from port %d, which lived for %v: connected by %d", c.pid, c.port, c.time, pid)
			}
			if pid := seen[fmt.Sprint(conn.EventAccept, c.port)]; pid != int32(os.Getpid()) {
				t.Errorf("connection from port %d, which lived for %v: accepted by %d", c.port, c.time, pid)
			}
		}
		t.Logf("%d of %d connections lived longer than %v", judged, len(lives), longest)
	})
}
