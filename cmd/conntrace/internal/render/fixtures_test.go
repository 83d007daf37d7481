package render

import (
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC // text shows local time
	os.Exit(m.Run())
}

var when = time.Date(2026, 1, 2, 3, 4, 5, 78_912_345, time.UTC)

func addr(s string) conn.Addr {
	if s == "" {
		return conn.Addr{}
	}
	return conn.AddrFrom(netip.MustParseAddrPort(s))
}

func tcp(status conn.Status, local, remote string, pid int32, comm string) conn.Conn {
	c := conn.Conn{FD: -1, Family: conn.Inet, Type: conn.Stream, Status: status, Laddr: addr(local), Raddr: addr(remote), PID: pid}
	if c.Laddr.IP().Is6() {
		c.Family = conn.Inet6
	}
	if pid != 0 {
		c.FD = pid % 100
		c.Process = &conn.Process{PID: pid, Comm: comm}
	}
	return c
}

// full returns a connection of which everything is known.
func full() conn.Conn {
	c := tcp(conn.StatusEstablished, "10.0.0.5:53422", "93.184.216.34:443", 43311, "curl")
	c.Known = conn.KnownUID | conn.KnownNetNS | conn.KnownInode | conn.KnownCookie | conn.KnownHolders
	c.UID, c.NetNS, c.Inode, c.Cookie = 0, 4026531840, 81234, 1<<63
	c.Process = &conn.Process{
		PID: 43311, UID: 1000, HasUID: true, Comm: "curl", Executable: "/usr/bin/curl", Cgroup: 7125,
		Start: time.Date(2026, 1, 2, 3, 4, 5, 60_000_000, time.FixedZone("", 3600)),
	}
	c.Holders = []conn.Holder{{PID: 43311, FD: 11}, {PID: 43312, FD: 3}}
	return c
}

func unixSocket(typ conn.Type, path string, pid int32, comm string) conn.Conn {
	c := tcp(conn.StatusNone, "", "", pid, comm)
	c.Family, c.Type, c.Laddr, c.Raddr = conn.Unix, typ, conn.AddrUnix(path), conn.AddrUnix("")
	return c
}

func udp(local, remote string, pid int32, comm string) conn.Conn {
	c := tcp(conn.StatusNone, local, remote, pid, comm)
	c.Type = conn.Datagram
	return c
}

// conns are connections of every sort, in no order.
func conns() []conn.Conn {
	return []conn.Conn{
		unixSocket(conn.Stream, "/run/systemd/private", 1, "systemd"),
		unixSocket(conn.Datagram, "/run/a b\n\x1b[31m\xff\"é,\\", 977, "evil\x1b]0;x\a"),
		unixSocket(conn.SeqPacket, "", 977, "udevd"),
		unixSocket(conn.Stream, "@/tmp/.X11-unix/X0@@", 0, ""),
		udp("127.0.0.53:53", "", 612, "systemd-resolve"),
		udp("[::]:5353", "[2001:db8::1]:5353", 613, "avahi-daemon"),
		tcp(conn.StatusTimeWait, "10.0.0.5:443", "203.0.113.171:51514", 0, ""),
		full(),
		tcp(conn.StatusListen, "[::]:443", "", 812, "nginx"),
		tcp(conn.StatusListen, "0.0.0.0:22", "", 701, "sshd"),
		tcp(conn.StatusEstablished, "[::ffff:10.0.0.5]:443", "[::ffff:203.0.113.171]:51515", 812, "nginx"),
		tcp(conn.StatusCloseWait, "[2001:db8:1234:5678:9abc:def0:1234:5678]:443", "[2001:db8:ffff:ffff:ffff:ffff:ffff:1]:40000", 812, "nginx"),
	}
}

// events are events of every type.
func events() []conn.Event {
	event := func(typ conn.EventType, d conn.Direction, c conn.Conn) conn.Event {
		return conn.Event{Time: when, Type: typ, Direction: d, Conn: c}
	}
	const established, closed = conn.StatusEstablished, conn.StatusClose
	es := []conn.Event{
		event(conn.EventSeed, 0, tcp(conn.StatusListen, "0.0.0.0:22", "", 701, "sshd")),
		event(conn.EventSeed, conn.Inbound, tcp(established, "10.0.0.5:22", "10.0.0.9:51234", 81223, "sshd")),
		event(conn.EventSeed, 0, tcp(conn.StatusTimeWait, "10.0.0.5:22", "10.0.0.9:51235", 0, "")),
		event(conn.EventListen, 0, tcp(conn.StatusListen, "[::]:443", "", 812, "nginx")),
		event(conn.EventConnect, conn.Outbound, full()),
		event(conn.EventAccept, conn.Inbound, tcp(established, "[2001:db8:1234::5]:443", "[2001:db8::1234:1]:51514", 812, "ng\x1b[2Jinx\n")),
		event(conn.EventAccept, conn.Inbound, tcp(established, "[::ffff:10.0.0.5]:443", "[::ffff:10.0.0.6]:51514", 813, "")),
		event(conn.EventFail, conn.Outbound, tcp(closed, "10.0.0.5:53424", "10.9.9.9:81", 1212312, "NetworkManager")),
		event(conn.EventFail, conn.Outbound, tcp(closed, "", "10.9.9.9:81", 43311, "curl")),
		event(conn.EventClose, conn.Outbound, full()),
		event(conn.EventClose, conn.Inbound, tcp(closed, "10.0.0.5:443", "203.0.113.171:51514", 812, "nginx")),
		event(conn.EventClose, 0, tcp(closed, "10.0.0.5:443", "203.0.113.171:51516", 0, "")),
		event(conn.EventClose, 0, tcp(closed, "0.0.0.0:80", "", 812, "nginx")),
		{Time: when, Type: conn.EventGap, Conn: conn.Conn{FD: -1}, Lost: 1204},
		event(conn.EventState, conn.Inbound, tcp(conn.StatusCloseWait, "10.0.0.5:443", "203.0.113.171:51514", 812, "nginx")),
		event(conn.EventState, 0, tcp(conn.StatusSynSent, "", "", 0, "")),
	}
	es[2].Reconciled = true
	es[7].Error = syscall.ECONNREFUSED
	es[9].Close = &conn.Close{
		Duration: 203 * time.Millisecond, BytesSent: 612, BytesReceived: 3_412_333,
		RTT: 12_345 * time.Microsecond, Reason: conn.ReasonFin, By: conn.Remote,
	}
	es[10].Close = &conn.Close{
		Duration: 2000 * time.Second, BytesSent: 34_123_331, BytesReceived: 1111,
		Retransmits: 3, RTT: -1, Reason: conn.ReasonReset, By: conn.Local, Unaccepted: true,
	}
	es[11].Close = &conn.Close{Duration: -1, RTT: -1}
	es[14].OldStatus = conn.StatusEstablished
	es[15].OldStatus = conn.StatusClose
	return es
}
