package tracker_test

import (
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// Who holds a socket. Each situation returns the processes that have a part in it.

// sockets makes one socket of each sort, as facts.
func (b *testbed) sockets(a *actor) (fds []int, facts []*fact) {
	b.t.Helper()
	for _, s := range stacks {
		server := b.listen(a, s, 4)
		udp := a.do("socket", s.domain, unix.SOCK_DGRAM, 0)
		a.do("bind", udp, at(s.listen, 0))
		fds = append(fds, server.fd, udp)
		facts = append(facts, server.fact, b.own(a, udp, conn.StatusNone))
	}
	for _, typ := range unixTypes {
		fd := a.do("socket", unix.AF_UNIX, typ, 0)
		a.do("bind", fd, "unix:")
		fds = append(fds, fd)
		facts = append(facts, b.own(a, fd, conn.StatusNone))
	}
	return fds, facts
}

// Several descriptors in one process: an inet socket has the lowest, a unix socket
// a row for each.
func dups(b *testbed, self *actor) []int32 {
	fds, facts := b.sockets(self)
	for i, fd := range fds {
		for range 2 {
			facts[i].also(self, self.do("dup", fd))
		}
	}
	return nil
}

// Several processes: the highest PID is the owner, and each sees the socket as its
// own. Of what it inherited, a process may keep some, or be the last to have it.
func forks(b *testbed, self *actor) []int32 {
	fds, facts := b.sockets(self)
	kids := []*actor{b.fork(self, root, fds...), b.fork(self, root, fds...), b.fork(self, nobody, fds...)}
	for i := range fds {
		for k, kid := range kids {
			fd := 3 + i // where it was inherited
			if (i+k)%3 == 0 {
				kid.do("close", fd)
				continue
			}
			facts[i].also(kid, fd)
			if k == 1 {
				facts[i].also(kid, kid.do("dup", fd))
			}
		}
		if i%2 == 0 {
			self.do("close", fds[i])
			facts[i].holders = facts[i].holders[1:]
		}
	}
	return pidsOf(kids...)
}

func pidsOf(actors ...*actor) (pids []int32) {
	for _, a := range actors {
		pids = append(pids, a.pid())
	}
	return pids
}

// Descriptors in messages. A socket that is on its way only is nobody's.
func passed(b *testbed, self *actor) []int32 {
	fds, facts := b.sockets(self)
	pair, err := self.try("pair", unix.SOCK_STREAM)
	must(b.t, err)
	other := b.fork(self, root, pair[1])
	b.own(self, pair[0], conn.StatusNone)
	b.own(self, pair[1], conn.StatusNone).also(other, 3)
	for i, fd := range fds {
		self.do("sendfd", pair[0], fd)
		if i%3 != 0 {
			self.do("close", fd)
			facts[i].unheld()
		}
	}
	// The first few arrive, at descriptors that are free there.
	for i := range fds[:4] {
		facts[i].also(other, other.do("recvfd", 3))
	}
	return pidsOf(other)
}

// A socket in the queue of a socket that is itself in a message.
func passedNested(b *testbed, self *actor) []int32 {
	outer, err := self.try("pair", unix.SOCK_DGRAM)
	must(b.t, err)
	inner, err := self.try("pair", unix.SOCK_STREAM)
	must(b.t, err)
	server := b.listen(self, stacks[0], 4)
	for _, fd := range append(outer, inner[0]) {
		b.own(self, fd, conn.StatusNone)
	}
	b.own(self, inner[1], conn.StatusNone).unheld()
	server.fact.unheld()
	self.do("sendfd", inner[0], server.fd)
	self.do("sendfd", outer[0], inner[1])
	self.do("close", server.fd)
	self.do("close", inner[1])
	return nil
}

// psutil reads the descriptors of thread-group leaders: what only another thread
// has is nobody's.
func ownTables(b *testbed, self *actor) []int32 {
	a := b.actor(root)
	fds, facts := b.sockets(a)
	a.do("own:close", fds[0]) // the leader has it still
	for i, fd := range fds[1:] {
		if i%2 == 0 {
			a.do("close", fd)
			facts[i+1].unheld()
		}
	}
	for port := uint16(4001); port < 4004; port++ {
		fd := a.do("own:socket", unix.AF_INET, unix.SOCK_DGRAM, 0)
		a.do("own:bind", fd, at("127.0.0.1", port))
		b.bare(conn.Inet, conn.Datagram, conn.AddrIPv4([4]byte{127, 0, 0, 1}, port), conn.Addr{}, conn.StatusNone).details = unknown
	}
	return pidsOf(a)
}

// A process whose leader has exited has no descriptors to see, though it goes on.
func leaderless(b *testbed, self *actor) []int32 {
	a := &actor{t: b.t, process: startAs(b.t, "leaderless", root)}
	fds, facts := b.sockets(a)
	kid := b.fork(a, root, fds[0])
	facts[0].also(kid, 3)
	a.do("end-leader")
	for _, f := range facts {
		f.holders = f.holders[1:]
	}
	return pidsOf(a, kid)
}

// The sockets of a zombie are gone, but for those that somebody else has too.
func zombie(b *testbed, self *actor) []int32 {
	a := b.actor(root)
	fds, facts := b.sockets(a)
	kid := b.fork(a, root, fds[0])
	facts[0].also(kid, 3).holders = facts[0].holders[1:]
	for _, f := range facts[1:] {
		b.forget(f)
	}
	a.kill()
	return pidsOf(a, kid)
}

// kill makes a zombie of a, until the end of the test.
func (a *actor) kill() {
	a.t.Helper()
	must(a.t, a.process.cmd.Process.Kill())
	pid := int(a.pid())
	must(a.t, unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
}

// Processes that have no sockets, and what looks like a process but is none.
func noSockets(b *testbed, self *actor) []int32 {
	b.sockets(self)
	return pidsOf(b.actor(root))
}
