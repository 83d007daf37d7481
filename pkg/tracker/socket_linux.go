package tracker

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/procinfo"
	"github.com/conntrace/conntrace/pkg/conn"
)

// duplicate returns a duplicate of the descriptor c.FD of the process c.PID, once
// it has made sure that it is the socket of c.
func duplicate(c *conn.Conn) (*os.File, error) {
	fd, err := duplicateFD(int(c.PID), int(c.FD))
	known := false
	if err == nil {
		known, err = isSocketOf(c, fd)
	}
	// The start time decides only where the socket does not: setting the clock changes
	// those of all processes (procinfo.Reader.FromBoot).
	if !known && (err == nil || errors.Is(err, ErrSocketChanged)) && startedAnew(c.Process) {
		err = fmt.Errorf("%w: another one has its PID", conn.ErrNoSuchProcess)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("/proc/%d/fd/%d", c.PID, c.FD)), nil
}

// localAddr asks the socket of c for its local address (getsockname(2)).
func localAddr(c *conn.Conn) (laddr conn.Addr, err error) {
	f, err := duplicate(c)
	if err != nil {
		return laddr, err
	}
	defer f.Close()
	raw, err := f.SyscallConn() // f.Fd would make the socket block, the process's one too
	if err != nil {
		return laddr, err
	}
	var name unix.Sockaddr
	controlErr := raw.Control(func(fd uintptr) { name, err = unix.Getsockname(int(fd)) })
	if err = errors.Join(controlErr, err); err != nil {
		return laddr, fmt.Errorf("getsockname: %w", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return conn.AddrIPv4(name.Addr, uint16(name.Port)), nil
	case *unix.SockaddrInet6:
		return conn.AddrIPv6(name.Addr, uint16(name.Port)), nil
	}
	return laddr, fmt.Errorf("getsockname: not an internet socket: %w", ErrSocketChanged)
}

// duplicateFD duplicates the descriptor target of the process pid. It returns -1 if
// it fails.
func duplicateFD(pid, target int) (fd int, err error) {
	if pid == os.Getpid() {
		// Any kernel can do this, and no seccomp filter is against it.
		fd, err = unix.FcntlInt(uintptr(target), unix.F_DUPFD_CLOEXEC, 0)
	} else {
		fd, err = getFD(pid, target)
	}
	if err == unix.EBADF {
		err = fmt.Errorf("%w: it is closed", ErrSocketChanged)
	}
	return fd, err
}

// getFD duplicates a descriptor of another process.
func getFD(pid, target int) (fd int, err error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	switch err {
	case nil:
	case unix.ESRCH, unix.EINVAL, unix.ENOENT: // the last two: it is a thread's ID by now
		return -1, conn.ErrNoSuchProcess
	default:
		return -1, pidfdError("pidfd_open", "5.3", err)
	}
	defer unix.Close(pidfd)
	fd, err = unix.PidfdGetfd(pidfd, target, 0)
	switch err {
	case nil, unix.EBADF:
		return fd, err
	case unix.ESRCH: // a zombie too; of that older kernels say EBADF
		return -1, conn.ErrNoSuchProcess
	}
	return -1, pidfdError("pidfd_getfd", "5.6", err)
}

// pidfdError says what an error of a system call, which Linux has since the
// version, means.
func pidfdError(call, version string, err error) error {
	switch err {
	case unix.ENOSYS:
		return fmt.Errorf("%s: %w: it takes Linux %s", call, err, version)
	case unix.EPERM, unix.EACCES: // PTRACE_MODE_ATTACH_REALCREDS; EACCES comes from security modules
		return fmt.Errorf("%s: %w: it takes CAP_SYS_PTRACE, or the same user where neither "+
			"kernel.yama.ptrace_scope nor the process (PR_SET_DUMPABLE) forbids it", call, err)
	}
	return fmt.Errorf("%s: %w", call, err)
}

// startedAnew reports whether another process than p has its PID now, by the time
// when it was started. If it is p now, it was p all along.
func startedAnew(p *conn.Process) bool {
	if p == nil || p.Start.IsZero() {
		return false
	}
	reader, err := procinfo.New("/proc")
	if err != nil {
		return false
	}
	now, err := reader.Lookup(p.PID)
	return err == nil && !now.Start.Equal(p.Start)
}

// isSocketOf returns an error unless fd may be the socket of c; known reports
// whether c knows enough of it to tell.
func isSocketOf(c *conn.Conn, fd int) (known bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("fstat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return false, fmt.Errorf("%w: it is no socket", ErrSocketChanged)
	}
	// Inode 0 was that of a connection which nobody had accepted yet.
	if c.Known.Has(conn.KnownInode) && c.Inode != 0 {
		if st.Ino != c.Inode {
			return false, fmt.Errorf("%w: its inode is %d, not %d", ErrSocketChanged, st.Ino, c.Inode)
		}
		known = true
	}
	// sockfs uses inode numbers again after 2^32 sockets (get_next_ino in fs/inode.c),
	// cookies never. But a row may have the cookie of a subflow of an MPTCP socket, and
	// an accepted one has its listener's: there the inode alone decides.
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return false, os.NewSyscallError("getsockopt", err)
	}
	if c.Known.Has(conn.KnownCookie) && protocol != unix.IPPROTO_MPTCP {
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			return known, nil // before Linux 4.12
		}
		if cookie != c.Cookie {
			return false, fmt.Errorf("%w: its cookie is %d, not %d", ErrSocketChanged, cookie, c.Cookie)
		}
		known = true
	}
	return known, nil
}

// The kinds of sockets. Each function returns an error that says what f is unless
// it is of that kind.

func listening(f *os.File) error {
	if is, err := option(f, unix.SO_ACCEPTCONN); err != nil || is != 0 {
		return err
	}
	return errors.New("the socket does not listen")
}

func datagram(f *os.File) error {
	if typ, err := option(f, unix.SO_TYPE); err != nil || typ == unix.SOCK_DGRAM {
		return err
	}
	return errors.New("not a datagram socket")
}

func connected(f *os.File) error {
	if is, err := option(f, unix.SO_ACCEPTCONN); err != nil {
		return err
	} else if is != 0 {
		return errors.New("the socket listens: it is for Listener")
	}
	_, err := unix.Getpeername(int(f.Fd()))
	if err == unix.ENOTCONN {
		return errors.New("the socket is not connected")
	}
	return os.NewSyscallError("getpeername", err)
}

// option returns a socket option of the level SOL_SOCKET. Fd leaves the blocking
// mode of a file from os.NewFile alone.
func option(f *os.File, name int) (int, error) {
	value, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, name)
	return value, os.NewSyscallError("getsockopt", err)
}
