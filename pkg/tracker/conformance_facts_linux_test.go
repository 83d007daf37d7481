package tracker_test

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// own adds the fact that an actor has a socket as descriptor fd.
func (b *testbed) own(a *actor, fd int, status conn.Status) *fact {
	b.t.Helper()
	s := steal(b.t, a.pid(), int32(fd))
	defer unix.Close(s)
	domain, err := unix.GetsockoptInt(s, unix.SOL_SOCKET, unix.SO_DOMAIN)
	must(b.t, err)
	typ, err := unix.GetsockoptInt(s, unix.SOL_SOCKET, unix.SO_TYPE)
	must(b.t, err)
	f := &fact{family: conn.Family(domain), typ: conn.Type(typ), status: status, holders: []conn.Holder{a.holder(fd)}}
	f.laddr, err = addressOf(unix.SYS_GETSOCKNAME, s)
	must(b.t, err)
	if f.family == conn.Unix {
		f.raddr = conn.AddrUnix("") // the peer's name is never shown
	} else if f.raddr, err = addressOf(unix.SYS_GETPEERNAME, s); err != nil {
		f.raddr = conn.Addr{}
	}
	f.look(b.t, s)
	b.facts = append(b.facts, f)
	return f
}

// also adds the fact that an actor has the socket as descriptor fd too.
func (f *fact) also(a *actor, fd int) *fact {
	f.holders = append(f.holders, a.holder(fd))
	return f
}

// unheld says that nobody has a descriptor of the socket any more, but a message
// or a thread has.
func (f *fact) unheld() { f.holders = nil }

// orphan says that the kernel alone has the socket, in another state.
func (f *fact) orphan(status conn.Status) {
	f.status, f.holders = status, nil
	f.inode, f.uid = 0, 0
}

// forget takes a fact back.
func (b *testbed) forget(f *fact) {
	b.facts = slices.DeleteFunc(b.facts, func(g *fact) bool { return f == g })
}

// bare adds the fact that there is a socket that has never been a descriptor.
func (b *testbed) bare(family conn.Family, typ conn.Type, laddr, raddr conn.Addr, status conn.Status) *fact {
	f := &fact{family: family, typ: typ, laddr: laddr, raddr: raddr, status: status, details: noInode}
	b.facts = append(b.facts, f)
	return f
}

// A stack is a way to speak IP: the addresses to listen on and to connect to.
type stack struct {
	name           string
	domain         int
	listen, target string
}

var stacks = []stack{
	{"IPv4", unix.AF_INET, "127.0.0.1", "127.0.0.1"},
	{"IPv6", unix.AF_INET6, "[::1]", "[::1]"},
	{"IPv4-mapped", unix.AF_INET6, "[::]", "[::ffff:127.0.0.1]"},
}

// at returns an address for a call.
func at(ip string, port uint16) string { return fmt.Sprintf("%s:%d", ip, port) }

// A server is a listening TCP socket.
type server struct {
	*testbed
	stack
	actor *actor
	fd    int
	fact  *fact
	port  uint16
}

// listen makes a listener of an actor. Options are triples for setsockopt.
func (b *testbed) listen(a *actor, s stack, backlog int, options ...[3]int) *server {
	b.t.Helper()
	fd := a.do("socket", s.domain, unix.SOCK_STREAM, 0)
	for _, o := range options {
		a.do("setsockopt", fd, o[0], o[1], o[2])
	}
	a.do("bind", fd, at(s.listen, 0))
	a.do("listen", fd, backlog)
	f := b.own(a, fd, conn.StatusListen)
	return &server{testbed: b, stack: s, actor: a, fd: fd, fact: f, port: f.laddr.Port()}
}

// A link is a connection, and both its ends facts.
type link struct {
	*server
	a, b     *fact // the end that has connected, and the one that was accepted
	afd, bfd int
}

// dial connects to the server in its own process. Nobody accepts.
func (s *server) dial(options ...[3]int) (fd int, f *fact) {
	s.t.Helper()
	fd = s.actor.do("socket", s.domain, unix.SOCK_STREAM, 0)
	for _, o := range options {
		s.actor.do("setsockopt", fd, o[0], o[1], o[2])
	}
	s.actor.do("connect", fd, at(s.target, s.port))
	return fd, s.own(s.actor, fd, conn.StatusEstablished)
}

// link makes a connection that is accepted.
func (s *server) link(options ...[3]int) *link {
	s.t.Helper()
	l := &link{server: s}
	l.afd, l.a = s.dial(options...)
	l.bfd = s.actor.do("accept", s.fd)
	l.b = s.own(s.actor, l.bfd, conn.StatusEstablished)
	return l
}

// stuffed makes a connection whose accepted end b has more to send than a, which
// does not read, takes: whatever b sends from now on stays with b.
func (s *server) stuffed() *link {
	s.t.Helper()
	l := s.link([3]int{unix.SOL_SOCKET, unix.SO_RCVBUF, 1}) // the least there is
	s.actor.do("setsockopt", l.bfd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<18)
	s.actor.do("send", l.bfd, 1<<17)
	return l
}

// finish ends the writing side of an end.
func (l *link) finish(fd int) { l.actor.do("shutdown", fd, unix.SHUT_WR) }

// await waits until the kernel has taken a TCP socket of this process to a state.
func (b *testbed) await(fd int, status conn.Status) {
	b.t.Helper()
	b.awaitInfo(fd, status.String(), func(i *unix.TCPInfo) bool { return i.State == uint8(status) })
}

func (b *testbed) awaitInfo(fd int, what string, ok func(*unix.TCPInfo) bool) {
	b.t.Helper()
	eventually(b.t, what, func() bool {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		must(b.t, err)
		return ok(info)
	})
}

// addLinkLocal gives the loopback device the address fe80::1.
func (b *testbed) addLinkLocal() {
	b.t.Helper()
	lo, err := netlink.LinkByName("lo")
	must(b.t, err)
	addr, err := netlink.ParseAddr("fe80::1/64")
	must(b.t, err)
	addr.Flags = unix.IFA_F_NODAD // can be bound to at once
	must(b.t, netlink.AddrAdd(lo, addr))
}

// addVXLAN makes the kernel receive VXLAN at a UDP port.
func (b *testbed) addVXLAN(port int) {
	b.t.Helper()
	link := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "vxlan0"}, VxlanId: 1, SrcAddr: net.IPv4(127, 0, 0, 1), Port: port,
	}
	if err := netlink.LinkAdd(link); err != nil {
		b.t.Skip("no VXLAN:", err)
	}
	must(b.t, netlink.LinkSetUp(link))
}
