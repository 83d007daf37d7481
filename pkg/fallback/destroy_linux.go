package fallback

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

const (
	// destroyGroups are the multicast groups SKNLGRP_INET_TCP_DESTROY (1) and
	// SKNLGRP_INET6_TCP_DESTROY (3) of include/uapi/linux/sock_diag.h, as bits from 0 on.
	destroyGroups = 1<<0 | 1<<2

	// destroyBuffer is room for the sockets that the kernel destroys while nobody
	// reads: some 6,000.
	destroyBuffer = 8 << 20

	// gather is how long notices wait for company after the first one has come.
	gather = 50 * time.Millisecond
)

// A destroyReader reads the notices of TCP sockets that the kernel destroys in one
// network namespace. The kernel sends one when it frees a socket that nobody uses any
// more (__sk_free, sock_diag_broadcast_destroy): as a rule right after its last state,
// but not before the last descriptor of it is closed. No privilege is needed.
type destroyReader struct {
	file  *os.File
	raw   syscall.RawConn
	netns uint32
	buf   []byte
	drops uint32 // notices that the kernel had no room for, by the last count
}

// openDestroyReader opens a reader for the namespace ns, with a buffer of so many
// bytes as far as the system allows.
func openDestroyReader(ns Namespace, buffer int) (*destroyReader, error) {
	var fd int
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	// The first takes CAP_NET_ADMIN, the second is bounded by net.core.rmem_max.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: destroyGroups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind to the groups of destroyed sockets: %w", err)
	}
	file := os.NewFile(uintptr(fd), "sock_diag")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &destroyReader{file: file, raw: raw, netns: ns.inode, buf: make([]byte, 8<<10)}, nil
}

func (r *destroyReader) close() error { return r.file.Close() }

// wait waits until there are notices, until the time, or until ctx ends.
func (r *destroyReader) wait(ctx context.Context, until time.Time) {
	// This sets the deadline first: a context that has ended is called for at once.
	r.file.SetReadDeadline(until)
	defer context.AfterFunc(ctx, func() { r.file.SetReadDeadline(time.Unix(1, 0)) })()
	ready := false
	r.raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(fds, 0)
		ready = n > 0
		return ready
	})
	if ready {
		sleep(ctx, time.Now().Add(gather))
	}
}

// read calls f with the body of every notice there is, and returns how many were
// lost since the last call.
func (r *destroyReader) read(f func(record []byte) error) (lost uint64, err error) {
	overrun := false
	ctlErr := r.raw.Control(func(fd uintptr) {
		for {
			n, from, recvErr := unix.Recvfrom(int(fd), r.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			switch recvErr {
			case nil:
			case unix.EINTR:
				continue
			case unix.ENOBUFS:
				overrun = true
				continue
			case unix.EAGAIN:
				return
			default:
				err = recvErr
				return
			}
			if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
				continue // not from the kernel
			}
			if n > len(r.buf) {
				err = fmt.Errorf("notice of %d bytes: %w", n, errShort)
				continue
			}
			for b := r.buf[:n]; len(b) > 0; {
				var m message
				if m, b, err = nextMessage(b); err != nil {
					break
				}
				if m.kind == sockDiagByFamily {
					if bad := f(m.body); bad != nil {
						err = bad
					}
				}
			}
		}
	})
	if ctlErr != nil {
		return 0, ctlErr
	}
	if overrun {
		lost = r.countDrops()
	}
	return lost, err
}

// countDrops returns how many notices the kernel has had no room for since the last
// call; at least one, as it has said so.
func (r *destroyReader) countDrops() uint64 {
	const soMeminfo, drops, fields = 55, 8, 9 // SO_MEMINFO gives SK_MEMINFO_VARS numbers; SK_MEMINFO_DROPS
	var info [fields]uint32
	size := uint32(unsafe.Sizeof(info))
	var errno syscall.Errno
	r.raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, soMeminfo,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if errno != 0 || size < uint32(unsafe.Sizeof(info)) {
		return 1 // before Linux 4.12
	}
	lost := info[drops] - r.drops
	r.drops = info[drops]
	return max(uint64(lost), 1)
}

// decodeDestroyed reads a notice: a struct inet_diag_msg with INET_DIAG_INFO.
// peerFIN reports of a connection whether its peer had shut it down.
func decodeDestroyed(b []byte, netns uint32, peerFIN func(c *conn.Conn) bool) (*destroyed, error) {
	d := &destroyed{Conn: conn.Conn{FD: -1, Type: conn.Stream}, established: true}
	if err := decodeInetDiag(b, &d.Conn); err != nil {
		return nil, err
	}
	d.Known = conn.KnownCookie // nobody has its inode by now
	if netns != 0 {
		d.NetNS = netns
		d.Known |= conn.KnownNetNS
	}
	d.close = func(conn.Direction) *conn.Close { return nil }
	if info, ok := infoOf(b); ok {
		d.established = info.established()
		d.direction = info.openedByAtEnd()
		d.close = func(direction conn.Direction) *conn.Close {
			return info.atEnd(direction, func() bool { return peerFIN(&d.Conn) })
		}
	}
	return d, nil
}
