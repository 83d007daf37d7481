package conn

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"unique"
)

// An Addr is the address of one end of a socket: IP and port, or the path of a
// unix socket, or none (the zero Addr). Addrs can be compared with ==.
type Addr struct {
	path unique.Handle[string] // of a unix socket with a name; as large as a pointer
	ip   [16]byte              // IPv4 in the first four bytes
	port uint16
	form addrForm
}

type addrForm uint8

const (
	formNone addrForm = iota
	formIPv4
	formIPv6
	formUnix
)

// AddrIPv4 returns the address of an AF_INET socket. Like psutil on Linux, it
// takes port 0 for no address at all, whatever the IP.
func AddrIPv4(ip [4]byte, port uint16) Addr {
	if port == 0 {
		return Addr{}
	}
	return AddrIPv4Exact(ip, port)
}

// AddrIPv6 returns the address of an AF_INET6 socket; an IPv4-mapped address
// stays one. Port 0 gives no address, as with [AddrIPv4].
func AddrIPv6(ip [16]byte, port uint16) Addr {
	if port == 0 {
		return Addr{}
	}
	return AddrIPv6Exact(ip, port)
}

// AddrIPv4Exact returns the address of an AF_INET socket, port 0 included: on systems
// other than Linux psutil shows 0.0.0.0:0.
func AddrIPv4Exact(ip [4]byte, port uint16) Addr {
	a := Addr{port: port, form: formIPv4}
	copy(a.ip[:], ip[:])
	return a
}

// AddrIPv6Exact is [AddrIPv4Exact] for an AF_INET6 socket.
func AddrIPv6Exact(ip [16]byte, port uint16) Addr {
	return Addr{ip: ip, port: port, form: formIPv6}
}

// AddrFrom returns the Addr of ap: AF_INET for an IPv4 address, AF_INET6 for any
// other, without its zone. Port 0 gives no address, as with [AddrIPv4].
func AddrFrom(ap netip.AddrPort) Addr {
	switch ip := ap.Addr(); {
	case ip.Is4():
		return AddrIPv4(ip.As4(), ap.Port())
	case ip.Is6():
		return AddrIPv6(ip.As16(), ap.Port())
	}
	return Addr{}
}

// AddrUnix returns the address of an AF_UNIX socket. The path is kept byte for
// byte; an abstract name starts with '@', and each NUL in it is written '@' as
// in /proc/net/unix. "" is a socket without a name, which is an address all the
// same: psutil shows "" for it, not none.
func AddrUnix(path string) Addr {
	a := Addr{form: formUnix}
	if path != "" {
		a.path = unique.Make(path)
	}
	return a
}

// AddrSunPath returns the address of an AF_UNIX socket that is bound to name, the
// bytes of sockaddr_un.sun_path (unix(7)). A path ends at its first NUL. A name that
// begins with NUL is abstract; each NUL in it becomes '@', as in /proc/net/unix.
func AddrSunPath(name []byte) Addr {
	if len(name) > 0 && name[0] == 0 {
		return AddrUnix(string(bytes.ReplaceAll(name, []byte{0}, []byte{'@'})))
	}
	path, _, _ := bytes.Cut(name, []byte{0})
	return AddrUnix(string(path))
}

// IsValid reports whether there is an address.
func (a Addr) IsValid() bool { return a.form != formNone }

// IsUnix reports whether a is the address of a unix socket.
func (a Addr) IsUnix() bool { return a.form == formUnix }

// AddrPort returns IP and port; the zero AddrPort if a is not an inet address.
func (a Addr) AddrPort() netip.AddrPort { return netip.AddrPortFrom(a.IP(), a.port) }

// IP returns the IP address; the zero netip.Addr if a is not an inet address.
func (a Addr) IP() netip.Addr {
	switch a.form {
	case formIPv4:
		return netip.AddrFrom4([4]byte(a.ip[:4]))
	case formIPv6:
		return netip.AddrFrom16(a.ip)
	}
	return netip.Addr{}
}

// Port returns the port; 0 if a is not an inet address.
func (a Addr) Port() uint16 { return a.port }

// Path returns the path of a unix socket, "" for every other address.
func (a Addr) Path() string {
	if a.path == (unique.Handle[string]{}) {
		return ""
	}
	return a.path.Value()
}

// In reports whether the IP address is in one of the prefixes. An IPv4 prefix
// covers IPv4-mapped IPv6 addresses too.
func (a Addr) In(prefixes []netip.Prefix) bool {
	ip := a.IP()
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool {
		return p.Contains(ip) || p.Contains(ip.Unmap())
	})
}

// String returns "ip:port" ("[ip]:port" for IPv6) or the unix path as it is; ""
// for none.
func (a Addr) String() string { return string(a.Append(nil)) }

// Append appends what [Addr.String] returns.
func (a Addr) Append(dst []byte) []byte {
	switch a.form {
	case formIPv4:
		dst = a.IP().AppendTo(dst)
	case formIPv6:
		dst = append(dst, '[')
		dst = a.IP().AppendTo(dst)
		dst = append(dst, ']')
	case formUnix:
		return append(dst, a.Path()...)
	default:
		return dst
	}
	return strconv.AppendUint(append(dst, ':'), uint64(a.port), 10)
}
