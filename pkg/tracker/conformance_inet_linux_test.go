package tracker_test

import (
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
)

// What TCP and UDP sockets are there to see. Each situation is made with every
// stack.

func tcpListening(b *testbed, self *actor) {
	for _, s := range stacks {
		b.listen(self, s, 4)
	}
	b.listen(self, stack{"any IPv4", unix.AF_INET, "0.0.0.0", ""}, 4)
}

func tcpEstablished(b *testbed, self *actor) {
	for _, s := range stacks {
		b.listen(self, s, 4).link()
	}
}

// Connections that wait for accept exist without a descriptor.
func tcpUnaccepted(b *testbed, self *actor) {
	for _, s := range stacks {
		server := b.listen(self, s, 4)
		for range 2 {
			_, client := server.dial()
			b.bare(client.family, client.typ, client.raddr, client.laddr, conn.StatusEstablished)
		}
		fd, client := server.dial() // and is gone before it is accepted
		b.bare(client.family, client.typ, client.raddr, client.laddr, conn.StatusCloseWait)
		self.do("close", fd)
		client.orphan(conn.StatusFinWait2)
	}
}

// With TCP_DEFER_ACCEPT a connection request stays one until data comes.
func tcpSynRecv(b *testbed, self *actor) {
	for _, s := range stacks {
		_, client := b.listen(self, s, 4, [3]int{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 600}).dial()
		b.bare(client.family, client.typ, client.raddr, client.laddr, conn.StatusSynRecv)
	}
}

// A listener whose queue is full takes no further request.
func tcpSynSent(b *testbed, self *actor) {
	for _, s := range stacks {
		server := b.listen(self, s, 0)
		_, client := server.dial()                                                                   // fills the queue
		b.awaitInfo(server.fd, "a full queue", func(i *unix.TCPInfo) bool { return i.Unacked == 1 }) // sk_ack_backlog
		b.bare(client.family, client.typ, client.raddr, client.laddr, conn.StatusEstablished)
		fd := self.do("socket", s.domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if _, err := self.try("connect", fd, at(s.target, server.port)); err != unix.EINPROGRESS {
			b.t.Fatal("connect:", err)
		}
		b.own(self, fd, conn.StatusSynSent).raddr = client.raddr
	}
}

func tcpHalfClosed(b *testbed, self *actor) {
	for _, s := range stacks {
		server := b.listen(self, s, 4)
		l := server.link()
		l.finish(l.afd)
		l.a.status, l.b.status = conn.StatusFinWait2, conn.StatusCloseWait

		l = server.link()
		self.do("close", l.afd)
		l.a.orphan(conn.StatusFinWait2)
		l.b.status = conn.StatusCloseWait
	}
}

func tcpTimeWait(b *testbed, self *actor) {
	for _, s := range stacks {
		server := b.listen(self, s, 4)
		l := server.link()
		self.do("close", l.afd)
		b.await(l.bfd, conn.StatusCloseWait)
		self.do("close", l.bfd)
		l.a.orphan(conn.StatusTimeWait)
		b.forget(l.b)

		l = server.link() // the same, but the descriptors stay, of closed sockets
		l.finish(l.afd)
		b.await(l.bfd, conn.StatusCloseWait)
		l.finish(l.bfd)
		l.a.orphan(conn.StatusTimeWait)
		b.forget(l.b)
	}
}

// An end that still has data to send, with its descriptor and without.
func tcpClosing(b *testbed, self *actor) {
	for _, s := range stacks {
		server := b.listen(self, s, 8)
		for _, orphan := range []bool{false, true} {
			end := func(l *link, status conn.Status) {
				if l.b.status = status; orphan {
					self.do("close", l.bfd)
					l.b.orphan(status)
				}
			}
			l := server.stuffed()
			l.finish(l.bfd)
			end(l, conn.StatusFinWait1)

			l = server.stuffed()
			l.finish(l.bfd)
			l.finish(l.afd)
			l.a.status = conn.StatusFinWait2
			end(l, conn.StatusClosing)

			l = server.stuffed()
			l.finish(l.afd)
			l.a.status = conn.StatusFinWait2
			b.await(l.bfd, conn.StatusCloseWait)
			l.finish(l.bfd)
			end(l, conn.StatusLastAck)
		}
	}
}

// A connection that was reset is no more, whoever has a descriptor of it.
func tcpReset(b *testbed, self *actor) {
	for _, s := range stacks {
		l := b.listen(self, s, 4).link()
		self.do("send", l.bfd, 1)
		self.do("close", l.afd) // with data unread
		b.forget(l.a)
		b.forget(l.b)
	}
}

// Sockets that net_connections() is not about.
func inetAbsent(b *testbed, self *actor) {
	for _, s := range stacks {
		self.do("bind", self.do("socket", s.domain, unix.SOCK_STREAM, 0), at(s.target, 0))
		self.do("socket", s.domain, unix.SOCK_STREAM, 0)
		self.do("socket", s.domain, unix.SOCK_DGRAM, 0)
		fd := self.do("socket", s.domain, unix.SOCK_DGRAM, 0)
		self.do("connect", fd, at(s.target, 9))
		self.do("connect", fd, "unspec")
		server := b.listen(self, s, 4)
		self.do("shutdown", server.fd, unix.SHUT_RD) // listens no more, but stays bound
		b.forget(server.fact)
	}
	self.do("socket", unix.AF_NETLINK, unix.SOCK_RAW, 0)
	self.do("socket", unix.AF_PACKET, unix.SOCK_RAW, 0)
	self.do("socket", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	for _, s := range []struct { // what not every kernel has
		domain, typ, protocol int
		bind                  string
	}{
		{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, "127.0.0.1:0"},
		{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, "[::1]:0"},
		{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP, "127.0.0.1:0"},
		{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, "127.0.0.1:0"},
		{unix.AF_VSOCK, unix.SOCK_STREAM, 0, ""},
	} {
		if fds, err := self.try("socket", s.domain, s.typ, s.protocol); err != nil {
			b.t.Logf("without socket(%d, %d, %d): %v", s.domain, s.typ, s.protocol, err)
		} else if s.bind != "" {
			self.do("bind", fds[0], s.bind)
		}
	}
}

func udp(b *testbed, self *actor) {
	for i, s := range stacks {
		bound := self.do("socket", s.domain, unix.SOCK_DGRAM, 0)
		self.do("bind", bound, at(s.listen, 0))
		port := b.own(self, bound, conn.StatusNone).laddr.Port()

		connected := self.do("socket", s.domain, unix.SOCK_DGRAM, 0)
		self.do("connect", connected, at(s.target, port))
		b.own(self, connected, conn.StatusNone)

		both := self.do("socket", s.domain, unix.SOCK_DGRAM, 0)
		self.do("bind", both, at(s.target, 0))
		self.do("connect", both, at(s.target, port))
		b.own(self, both, conn.StatusNone)

		again := self.do("socket", s.domain, unix.SOCK_DGRAM, 0)
		self.do("bind", again, at(s.target, uint16(4001+i)))
		self.do("connect", again, at(s.target, port))
		self.do("connect", again, "unspec") // which leaves it bound, as the port was asked for
		b.own(self, again, conn.StatusNone)
	}
	any4 := self.do("socket", unix.AF_INET, unix.SOCK_DGRAM, 0)
	self.do("bind", any4, "0.0.0.0:0")
	b.own(self, any4, conn.StatusNone)
}

// Sockets that share an address are told apart by their descriptors.
func reusePort(b *testbed, self *actor) {
	for _, s := range stacks {
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			var port uint16
			for range 3 {
				fd := self.do("socket", s.domain, typ, 0)
				self.do("setsockopt", fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
				self.do("bind", fd, at(s.listen, port))
				status := conn.StatusNone
				if typ == unix.SOCK_STREAM {
					self.do("listen", fd, 4)
					status = conn.StatusListen
				}
				port = b.own(self, fd, status).laddr.Port()
			}
		}
	}
}

// A link-local address is shown without its scope.
func linkLocal(b *testbed, self *actor) {
	b.addLinkLocal()
	server := b.listen(self, stack{"link-local", unix.AF_INET6, "[fe80::1%1]", "[fe80::1%1]"}, 4)
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		fd := self.do("socket", unix.AF_INET6, typ, 0)
		eventually(b.t, "a route to fe80::1", func() bool { // comes and goes while the device comes up
			_, err := self.try("connect", fd, at(server.target, server.port))
			return err == nil
		})
		status := conn.StatusNone
		if typ == unix.SOCK_STREAM {
			status = conn.StatusEstablished
		}
		b.own(self, fd, status)
	}
	b.own(self, self.do("accept", server.fd), conn.StatusEstablished)
}

// A socket that the kernel has made for itself, here one that receives VXLAN.
func kernelSocket(b *testbed, _ *actor) {
	b.addVXLAN(4789)
	b.bare(conn.Inet, conn.Datagram, conn.AddrIPv4([4]byte{}, 4789), conn.Addr{}, conn.StatusNone).details = unknown
}

// MPTCP is TCP to the eye, with the owner of the MPTCP socket.
func multipath(b *testbed, self *actor) {
	if _, err := self.try("socket", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP); err != nil {
		testenv.Missing(b.t, "MPTCP: "+err.Error())
	}
	for _, s := range stacks {
		fd := self.do("socket", s.domain, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		self.do("bind", fd, at(s.listen, 0))
		self.do("listen", fd, 4)
		port := b.own(self, fd, conn.StatusListen).laddr.Port()
		for _, protocol := range []int{unix.IPPROTO_MPTCP, unix.IPPROTO_TCP} {
			client := self.do("socket", s.domain, unix.SOCK_STREAM, protocol)
			self.do("connect", client, at(s.target, port))
			b.own(self, client, conn.StatusEstablished)
			b.own(self, self.do("accept", fd), conn.StatusEstablished)
		}
	}
}
