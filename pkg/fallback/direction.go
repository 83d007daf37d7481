package fallback

import (
	"net/netip"

	"github.com/conntrace/conntrace/pkg/conn"
)

// listeners are the addresses that sockets listen on.
type listeners map[endpoint]listener

type listener struct {
	look uint32 // that saw one there last
	pid  int32  // of who listens; 0: unknown
}

// An endpoint is what a socket listens on. No IP is every one.
type endpoint struct {
	netns  uint32
	family conn.Family
	port   uint16
	ip     netip.Addr
}

// add notes that the look saw the listener c.
func (l listeners) add(c *conn.Conn, look uint32) {
	e := endpointOf(c)
	if e.ip.Unmap().IsUnspecified() {
		e.ip = netip.Addr{}
	}
	pid := c.PID
	if pid == 0 {
		pid = l[e].pid
	}
	l[e] = listener{look, pid}
}

// forget drops what was last seen before a look: a connection may outlive the
// listener that it came by.
func (l listeners) forget(before uint32) {
	for e, at := range l {
		if at.look < before {
			delete(l, e)
		}
	}
}

// find returns the listener on the local address of c, one that there was at the
// last look too.
func (l listeners) find(c *conn.Conn) (listener, bool) {
	e := endpointOf(c)
	at, ok := l[e]
	if !ok {
		e.ip = netip.Addr{}
		at, ok = l[e]
	}
	return at, ok
}

// has reports whether there is such a listener.
func (l listeners) has(c *conn.Conn) bool {
	_, ok := l.find(c)
	return ok
}

func endpointOf(c *conn.Conn) endpoint {
	return endpoint{netns: c.NetNS, family: c.Family, port: c.Laddr.Port(), ip: c.Laddr.IP()}
}

// directionOf says who opened a connection that the kernel does not tell that of. A
// listener on its local address tells: it is inbound. So does the other end, if that
// is on this machine. A listener may have come and gone between two looks, though;
// what is left then are the ports, as a port that the system has chosen is that of
// who connects, and a well-known one is not. Where they do not tell either, nobody
// knows.
func (p *Poller) directionOf(s *polled) conn.Direction {
	switch s.Status {
	case conn.StatusListen:
		return 0
	case conn.StatusSynSent:
		return conn.Outbound
	case conn.StatusSynRecv:
		return conn.Inbound
	}
	if p.listeners.has(&s.Conn) {
		return conn.Inbound
	}
	// The other end may be of the other family, with the same addresses.
	for _, family := range []conn.Family{conn.Inet, conn.Inet6} {
		mirror := conn.Conn{Family: family, NetNS: s.NetNS, Laddr: s.Raddr, Raddr: s.Laddr}
		other := p.sockets[tupleOf(&mirror)] // none where cookies tell sockets apart
		switch {
		case other != nil && other.direction == conn.Outbound:
			return conn.Inbound
		case other != nil && other.direction == conn.Inbound, (other != nil || here(&s.Conn)) && p.listeners.has(&mirror):
			return conn.Outbound
		}
	}
	return byPorts(s.Laddr.Port(), s.Raddr.Port(), p.observer.ephemeral())
}

// here reports whether the other end of c is sure to be on this machine.
func here(c *conn.Conn) bool {
	return c.Raddr.IP() == c.Laddr.IP() || c.Raddr.IP().Unmap().IsLoopback()
}

// A portRange is the ports from first to last.
type portRange struct{ first, last uint16 }

func (r portRange) has(port uint16) bool { return r.first <= port && port <= r.last }

// byPorts says who opened a connection as far as the ports of its ends tell.
func byPorts(local, remote uint16, ephemeral portRange) conn.Direction {
	const reserved = 1024
	switch {
	case ephemeral.has(local) && !ephemeral.has(remote):
		return conn.Outbound
	case ephemeral.has(remote) && !ephemeral.has(local):
		return conn.Inbound
	case remote < reserved && reserved <= local:
		return conn.Outbound
	}
	return 0
}

// ephemeralPorts returns the ports that the system goos gives to those who connect,
// as it comes.
func ephemeralPorts(goos string) portRange {
	switch goos {
	case "linux":
		return portRange{32768, 60999}
	case "illumos", "solaris":
		return portRange{32768, 65535}
	case "freebsd":
		return portRange{10000, 65535}
	case "openbsd":
		return portRange{1024, 49151}
	}
	return portRange{49152, 65535} // IANA's: RFC 6335
}
