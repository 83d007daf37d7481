package tracker_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// helperHolder is told what to do with the socket that it has inherited as
// descriptor 3:
//
//	fork    starts a process that has inherited it too, and answers its PID
//	reap    ends that process
//	exec    becomes another program, which has it no more (close-on-exec)
func helperHolder(r *bufio.Scanner, w io.Writer) error {
	fmt.Fprintln(w, "ready")
	var child *exec.Cmd
	for r.Scan() {
		switch r.Text() {
		case "fork":
			child = exec.Command(os.Args[0])
			child.Env = append(os.Environ(), helperEnv+"=idle")
			child.ExtraFiles = []*os.File{os.NewFile(3, "socket")}
			if _, err := child.StdinPipe(); err != nil {
				return err
			}
			if err := child.Start(); err != nil {
				return err
			}
			fmt.Fprintln(w, child.Process.Pid)
		case "reap":
			child.Process.Kill()
			child.Wait()
			fmt.Fprintln(w, "reaped")
		case "exec":
			unix.CloseOnExec(3)
			os.Setenv(helperEnv, "idle")
			return syscall.Exec(os.Args[0], os.Args[:1], os.Environ())
		}
	}
	return nil
}

// helperIdle does nothing until its stdin is closed.
func helperIdle(r *bufio.Scanner, _ io.Writer) error {
	for r.Scan() {
	}
	return nil
}

// TestHolders: who holds a socket is known at once after a fork, an exec and an
// exit, however old the last look at descriptors may be.
func TestHolders(t *testing.T) {
	tr := open(t, tracker.Config{Freshness: time.Hour})
	p := connect(t, "tcp4", "127.0.0.1:0")
	client, err := p.client.File()
	if err != nil {
		t.Fatal(err)
	}
	local, remote := addr(p.client.LocalAddr()), addr(p.client.RemoteAddr()) // the port may be another one's in TIME_WAIT
	its := func(c conn.Conn) bool { return c.Laddr == local && c.Raddr == remote }
	row := func() conn.Conn {
		t.Helper()
		rows, err := tr.Connections(conn.KindTCP4)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(rows, its)
		if i < 0 {
			t.Fatal("the connection is not there")
		}
		return rows[i]
	}
	holder := func() int32 {
		t.Helper()
		return row().PID
	}
	if pid := holder(); pid != int32(os.Getpid()) {
		t.Fatalf("held by %d, want %d", pid, os.Getpid())
	}
	heir := start(t, "holder", client)
	heir.ask() // it runs
	if pid := holder(); pid != max(heir.pid(), int32(os.Getpid())) {
		t.Errorf("after a fork: held by %d, want %d", pid, heir.pid())
	}
	client.Close()
	p.client.Close() // of which no event tells, as the heir has it still

	grandchild := heir.ask("fork")
	if pid := fmt.Sprint(holder()); pid != grandchild {
		t.Errorf("after the heir's fork: held by %s, want %s", pid, grandchild)
	}
	heir.ask("reap")
	if pid := holder(); pid != heir.pid() {
		t.Errorf("after the grandchild's exit: held by %d, want %d", pid, heir.pid())
	}
	fmt.Fprintln(heir.in, "exec")
	eventually(t, "a socket that nobody holds any more, half closed", func() bool {
		snap, err := tracker.TakeSnapshot(t.Context(), tracker.SnapshotConfig{Query: fallback.Query{Kind: conn.KindTCP4}})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(snap.Conns, its)
		return i >= 0 && snap.Conns[i].Status == conn.StatusFinWait2 && snap.Conns[i].Inode == 0
	})
	if c := row(); c.Status != conn.StatusFinWait2 || c.PID != 0 || c.FD != -1 {
		t.Errorf("after an exec: %+v", c)
	}
}

// TestEndingStates: what a socket is on its way to an end is known without an event or a
// look at the kernel's tables.
func TestEndingStates(t *testing.T) {
	tr := open(t, tracker.Config{Freshness: tracker.NeverRefresh})
	p := connect(t, "tcp4", "127.0.0.1:0")
	row := func(local, remote conn.Addr) conn.Conn {
		t.Helper()
		rows, err := tr.Connections(conn.KindTCP4)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range rows {
			if c.Laddr == local && c.Raddr == remote {
				return c
			}
		}
		t.Fatalf("%s is not there", local)
		return conn.Conn{}
	}
	client, server := addr(p.client.LocalAddr()), addr(p.server.LocalAddr())
	p.client.CloseWrite()
	read(t, p.server, 0)
	eventually(t, "FIN_WAIT2 and CLOSE_WAIT", func() bool {
		return row(client, server).Status == conn.StatusFinWait2 && row(server, client).Status == conn.StatusCloseWait
	})
	if c := row(client, server); c.PID != int32(os.Getpid()) || c.FD < 0 {
		t.Errorf("shut down, but held: pid %d, fd %d", c.PID, c.FD)
	}
	p.client.Close()
	p.server.Close()

	orphan := connect(t, "tcp4", "127.0.0.1:0") // whose FIN waits behind data that nobody reads
	orphan.client.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	for err := error(nil); err == nil; {
		_, err = orphan.client.Write(make([]byte, 1<<20))
	}
	client, server = addr(orphan.client.LocalAddr()), addr(orphan.server.LocalAddr())
	orphan.client.Close()
	if c := row(client, server); c.Status != conn.StatusFinWait1 || c.PID != 0 || c.FD != -1 || c.Process != nil || c.Inode != 0 {
		t.Errorf("an orphan in %s has pid %d, fd %d, inode %d", c.Status, c.PID, c.FD, c.Inode)
	}
}

// TestCloseBy: a close says which side began it, and whether anybody had accepted
// the connection.
func TestCloseBy(t *testing.T) {
	tr := open(t, tracker.Config{})
	l, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: []uint16{port(l.Addr())}, Events: []conn.EventType{conn.EventClose}})
	closes := func(reason conn.Reason, outbound, inbound conn.Side, unaccepted bool) {
		t.Helper()
		for range 2 {
			e := s.event(conn.EventClose)
			want := map[conn.Direction]conn.Side{conn.Outbound: outbound, conn.Inbound: inbound}[e.Direction]
			if e.Close == nil || e.Close.Reason != reason || e.Close.By != want || e.Close.Unaccepted != (unaccepted && e.Direction == conn.Inbound) {
				t.Errorf("%s: %+v, want %s by %s", e.Direction, e.Close, reason, want)
			}
		}
	}
	p := dial(t, l, "tcp4", l.Addr().String())
	p.client.Close()
	read(t, p.server, 0)
	p.server.Close()
	closes(conn.ReasonFin, conn.Local, conn.Remote, false)

	p = dial(t, l, "tcp4", l.Addr().String())
	p.server.Close()
	read(t, p.client, 0)
	p.client.Close()
	closes(conn.ReasonFin, conn.Remote, conn.Local, false)

	p = dial(t, l, "tcp4", l.Addr().String())
	p.client.SetLinger(0)
	p.client.Close()
	read(t, p.server, 0)
	p.server.Close()
	closes(conn.ReasonReset, conn.Local, conn.Remote, false)

	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	closes(conn.ReasonReset, conn.Local, conn.Remote, true)
}

// TestFastOpen: data that comes with the SYN, and a connection that may be accepted
// before it is established (RFC 7413).
func TestFastOpen(t *testing.T) {
	const fastopen = "/proc/sys/net/ipv4/tcp_fastopen"
	tr := open(t, tracker.Config{})
	p, _ := startElsewhere(t, "fastopen")
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{p.pid()}})
	p.ask(3, fastopen) // client, server
	for range 3 {      // the first one gets a cookie, the others send data by it
		ports := p.ask("connect")
		connected, accepted := s.event(conn.EventConnect), s.event(conn.EventAccept)
		if accepted.Direction == conn.Outbound {
			connected, accepted = accepted, connected
		}
		if got := fmt.Sprint(connected.Laddr.Port(), connected.FD >= 0, accepted.Raddr.Port()); got != ports {
			t.Errorf("%s, want %s", got, ports)
		}
		for range 2 {
			if e := s.event(conn.EventClose); e.Close == nil || e.Close.Unaccepted {
				t.Errorf("close: %s", describe(&e))
			}
		}
	}
	if got := p.ask("used"); got == "0" {
		t.Error("no data was sent with a SYN: nothing was tested")
	}
}

// helperFastOpen is told "VALUE PATH" of the sysctl, and then "connect" again and
// again: it connects to itself with data in the SYN, and answers
// "PORT true PORT" of the client; or "used": how often that was accepted.
func helperFastOpen(r *bufio.Scanner, w io.Writer) error {
	r.Scan()
	value := r.Text()
	r.Scan()
	if err := os.WriteFile(r.Text(), []byte(value), 0); err != nil {
		return err
	}
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16); err != nil {
		return err
	}
	if err := unix.Listen(l, 16); err != nil {
		return err
	}
	to, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	used := 0
	fmt.Fprintln(w, "ready")
	for r.Scan() {
		if r.Text() == "used" {
			fmt.Fprintln(w, used)
			continue
		}
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Sendto(c, []byte("data"), unix.MSG_FASTOPEN, to); err != nil {
			return fmt.Errorf("sendto: %w", err)
		}
		a, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		if info, err := unix.GetsockoptTCPInfo(c, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Options&32 != 0 { // TCPI_OPT_SYN_DATA
			used++
		}
		name, err := unix.Getsockname(c)
		if err != nil {
			return err
		}
		port := name.(*unix.SockaddrInet4).Port
		unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(c)
		unix.Close(a)
		fmt.Fprintln(w, port, true, port)
	}
	return nil
}
