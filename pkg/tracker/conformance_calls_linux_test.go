package tracker_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A call is what an actor can do. Its arguments are words; it returns descriptors.
type call struct {
	args int
	call func(args []string) (fds []int, err error)
}

var calls = map[string]call{
	"socket": numeric(3, func(a []int) ([]int, error) { // domain, type, protocol
		return one(unix.Socket(a[0], a[1]|unix.SOCK_CLOEXEC, a[2]))
	}),
	"pair": numeric(1, func(a []int) ([]int, error) { // type
		fds, err := unix.Socketpair(unix.AF_UNIX, a[0]|unix.SOCK_CLOEXEC, 0)
		return fds[:], err
	}),
	"bind":    addressed(unix.SYS_BIND),    // descriptor, address
	"connect": addressed(unix.SYS_CONNECT), // descriptor, address
	"listen": numeric(2, func(a []int) ([]int, error) { // descriptor, backlog
		return nil, unix.Listen(a[0], a[1])
	}),
	"accept": numeric(1, func(a []int) ([]int, error) {
		fd, _, err := unix.Accept4(a[0], unix.SOCK_CLOEXEC)
		return one(fd, err)
	}),
	"dup": numeric(1, func(a []int) ([]int, error) {
		return one(unix.FcntlInt(uintptr(a[0]), unix.F_DUPFD_CLOEXEC, 0))
	}),
	"close":    numeric(1, func(a []int) ([]int, error) { return nil, unix.Close(a[0]) }),
	"shutdown": numeric(2, func(a []int) ([]int, error) { return nil, unix.Shutdown(a[0], a[1]) }),
	"setsockopt": numeric(4, func(a []int) ([]int, error) { // descriptor, level, name, value
		return nil, unix.SetsockoptInt(a[0], a[1], a[2], a[3])
	}),
	"send": numeric(2, func(a []int) ([]int, error) { // descriptor, number of bytes
		_, err := unix.SendmsgN(a[0], make([]byte, a[1]), nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		return nil, err
	}),
	"recv": numeric(2, func(a []int) ([]int, error) { // descriptor, number of bytes
		_, _, err := unix.Recvfrom(a[0], make([]byte, a[1]), unix.MSG_DONTWAIT)
		return nil, err
	}),
	"sendfd": numeric(2, func(a []int) ([]int, error) { // through descriptor, descriptor
		return nil, unix.Sendmsg(a[0], []byte{0}, unix.UnixRights(a[1]), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	}),
	"linger": numeric(1, func(a []int) ([]int, error) { // that a close resets the connection
		return nil, unix.SetsockoptLinger(a[0], unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}),
	"exec":   numeric(0, func([]int) ([]int, error) { return nil, reexec() }),
	"recvfd": numeric(1, func(a []int) ([]int, error) { return receive(a[0]) }),
}

func one(fd int, err error) ([]int, error) {
	if err != nil {
		return nil, err
	}
	return []int{fd}, nil
}

// numeric is a call whose n arguments are numbers.
func numeric(n int, f func([]int) ([]int, error)) call {
	return call{n, func(words []string) ([]int, error) {
		args, err := numbers(words)
		if err != nil {
			return nil, err
		}
		return f(args)
	}}
}

// addressed is a call whose arguments are a descriptor and an address.
func addressed(nr uintptr) call {
	return call{2, func(words []string) ([]int, error) {
		fd, err := strconv.Atoi(words[0])
		if err != nil {
			return nil, err
		}
		sa, err := sockaddr(words[1])
		if err != nil {
			return nil, err
		}
		if _, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&sa[0])), uintptr(len(sa))); errno != 0 {
			return nil, errno
		}
		return nil, nil
	}}
}

// receive returns the descriptors in the next message.
func receive(fd int) ([]int, error) {
	oob := make([]byte, 256)
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

// sockaddr returns the struct sockaddr for "IP:PORT", "unix:" and sun_path in
// hexadecimal, or "unspec". It does by hand what x/sys does, as that has no way to
// say every address that the kernel takes.
func sockaddr(word string) ([]byte, error) {
	family := func(n uint16) []byte { return binary.NativeEndian.AppendUint16(nil, n) }
	if word == "unspec" {
		return append(family(unix.AF_UNSPEC), make([]byte, 14)...), nil
	}
	if digits, ok := strings.CutPrefix(word, "unix:"); ok {
		path, err := hex.DecodeString(digits)
		return append(family(unix.AF_UNIX), path...), err
	}
	ap, err := netip.ParseAddrPort(word)
	if err != nil {
		return nil, err
	}
	if ap.Addr().Is4() {
		sa := binary.BigEndian.AppendUint16(family(unix.AF_INET), ap.Port())
		return append(append(sa, ap.Addr().AsSlice()...), make([]byte, 8)...), nil
	}
	sa := binary.BigEndian.AppendUint16(family(unix.AF_INET6), ap.Port())
	sa = append(append(sa, 0, 0, 0, 0), ap.Addr().AsSlice()...)
	scope, _ := strconv.Atoi(ap.Addr().Zone())
	return binary.NativeEndian.AppendUint32(sa, uint32(scope)), nil
}

// sunPath returns the address of a unix socket for a call.
func sunPath(path string) string { return "unix:" + hex.EncodeToString([]byte(path)) }

// shown returns the name of a unix socket as psutil has it, from its sun_path.
func shown(path string) conn.Addr {
	if strings.HasPrefix(path, "\x00") {
		return conn.AddrUnix(strings.ReplaceAll(path, "\x00", "@"))
	}
	path, _, _ = strings.Cut(path, "\x00")
	return conn.AddrUnix(path)
}

var errFamily = errors.New("unexpected address family")

// addressOf asks the kernel for an address of a socket: its own with
// SYS_GETSOCKNAME, its peer's with SYS_GETPEERNAME. That of a unix socket is its
// sun_path.
func addressOf(nr uintptr, fd int) (conn.Addr, error) {
	var sa [unix.SizeofSockaddrAny]byte
	size := uint32(len(sa))
	if _, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		return conn.Addr{}, errno
	}
	port := binary.BigEndian.Uint16(sa[2:])
	switch binary.NativeEndian.Uint16(sa[:]) {
	case unix.AF_INET:
		return conn.AddrIPv4([4]byte(sa[4:]), port), nil
	case unix.AF_INET6:
		return conn.AddrIPv6([16]byte(sa[8:]), port), nil
	case unix.AF_UNIX:
		return shown(string(sa[2:size])), nil
	}
	return conn.Addr{}, errFamily
}
