package fallback

import (
	"context"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

const (
	// tcpStates are the states that psutil shows, as bits: 1 (ESTABLISHED) to 12
	// (NEW_SYN_RECV). Left out is 13 (BOUND_INACTIVE, since Linux 6.8): a socket that
	// is bound, but neither listens nor is connected.
	tcpStates = 1<<13 - 1<<1
	allStates = 1<<32 - 1

	// udiagShow is UDIAG_SHOW_NAME, UDIAG_SHOW_RQLEN and UDIAG_SHOW_UID; kernels
	// before 5.3 take no notice of the last one.
	udiagShow = 1<<0 | 1<<4 | 1<<6

	// dumpBuffer is the most that the kernel puts into a datagram of a dump, if the
	// reader has room for it (netlink_recvmsg).
	dumpBuffer = 32 << 10

	// dumpTries is how often a dump is made before a torn one is taken for an answer.
	dumpTries = 4
)

// Netlink returns a source that reads the socket tables by sock_diag(7), and who
// holds the sockets in the procfs at procfsRoot. It asks the kernel for each table
// once, and fails with the kernel's reason; that wraps [errors.ErrUnsupported] if
// the kernel does not have what it takes.
//
// With /proc the tables are those of the caller's network namespace. Any other root,
// such as the host's in a container, has the view of its process 1: the source enters
// that one's network namespace to ask, which takes CAP_SYS_ADMIN there and the right
// to look into process 1 (ptrace(2)). [Procfs] reads the same without either.
func Netlink(procfsRoot string) (Source, error) {
	d := newSockDiag()
	if !isOwnProc(procfsRoot) {
		home, err := rootNamespace(procfsRoot)
		if err != nil {
			return nil, fmt.Errorf("netlink: %w", &EnterError{procfsRoot, err})
		}
		d.home = &home
	}
	if err := d.Home().Do(d.probe); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return NewSource("netlink", procfsRoot, d, procHolders{procfsRoot})
}

// SockDiag returns what reads the socket tables by sock_diag(7), for a source that has
// no better way to read some of them.
func SockDiag() Tables { return newSockDiag() }

func newSockDiag() sockDiag {
	return sockDiag{buffers: &sync.Pool{New: func() any { return new([dumpBuffer]byte) }}}
}

// sockDiag reads socket tables by sock_diag.
type sockDiag struct {
	buffers *sync.Pool
	home    *Namespace // nil: the caller's
}

func (d sockDiag) Home() Namespace {
	if d.home != nil {
		return *d.home
	}
	return CallerNamespace()
}

// probe asks for no socket of each table, which loads the kernel's modules.
func (d sockDiag) probe() error {
	c, err := d.open()
	if err != nil {
		return err
	}
	defer c.close()
	for i := range tables {
		t := &tables[i]
		_, err := c.dump(context.Background(), t, 0, func([]byte) {})
		if err == unix.ENOENT && !t.optional() {
			err = ErrNoSockDiag
		}
		if err != nil && err != unix.ENOENT {
			return fmt.Errorf("%s: %w", t.file, err)
		}
	}
	return nil
}

func (d sockDiag) Read(ctx context.Context, ns Namespace, kinds conn.Kind, s *Snapshot) error {
	var c *diagConn
	err := ns.Do(func() (err error) {
		c, err = d.open()
		return err
	})
	if err != nil {
		return err
	}
	defer c.close()
	for i := range tables {
		t := &tables[i]
		if !kinds.Has(t.kind) {
			continue
		}
		err := c.read(ctx, t, s)
		if err == unix.ENOENT && t.optional() {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t.file, err)
		}
	}
	return nil
}

// A diagConn is a sock_diag socket. It belongs to the network namespace that it
// was opened in, whatever thread uses it.
type diagConn struct {
	fd      int
	buf     *[dumpBuffer]byte
	buffers *sync.Pool
	devices map[uint64]uint32 // interfaces that sockets of the last list are bound to, by cookie
}

func (d sockDiag) open() (*diagConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return &diagConn{fd: fd, buf: d.buffers.Get().(*[dumpBuffer]byte), buffers: d.buffers}, nil
}

func (c *diagConn) close() {
	unix.Close(c.fd)
	c.buffers.Put(c.buf)
}

// read appends the sockets in t to s.
func (c *diagConn) read(ctx context.Context, t *table, s *Snapshot) error {
	states := uint32(allStates)
	if t.typ == conn.Stream {
		states = tcpStates
	}
	return readWhole(t, s, func(record func([]byte)) (torn bool, err error) {
		return c.dump(ctx, t, states, record)
	})
}

// readWhole appends the sockets that dump gives the records of, and dumps again as
// long as the answer is torn, but not for ever.
func readWhole(t *table, s *Snapshot, dump func(record func([]byte)) (torn bool, err error)) error {
	conns, warnings := len(s.Conns), len(s.Warnings)
	for try := 1; ; try++ {
		number := 0
		torn, err := dump(func(b []byte) {
			number++
			if err := appendSocket(t, b, s); err != nil {
				s.Warnings = append(s.Warnings, fmt.Errorf("sock_diag: %s: record %d: %w", t.file, number, err))
			}
		})
		if err != nil || !torn {
			return err
		}
		if try == dumpTries {
			s.Warnings = append(s.Warnings, fmt.Errorf("sock_diag: %s: the table changed while it was read, %d times in a row", t.file, try))
			return nil
		}
		s.Conns, s.Warnings = s.Conns[:conns], s.Warnings[:warnings]
	}
}

// appendSocket appends the socket that the record b is about.
func appendSocket(t *table, b []byte, s *Snapshot) (err error) {
	n := len(s.Conns)
	s.Conns = append(s.Conns, conn.Conn{Type: t.typ})
	c := &s.Conns[n]
	if t.family != conn.Unix {
		err = decodeInetDiag(b, c)
	} else {
		var pending uint32
		pending, err = decodeUnixDiag(b, c)
		if pending > 0 {
			// A connection that nobody has accepted yet has the name of its listener, but
			// no inode, and sk_diag_dump leaves it out. As such rows are equal, one will do.
			s.Conns = append(s.Conns, conn.Conn{Family: c.Family, Type: c.Type, Laddr: c.Laddr, Raddr: c.Raddr, Known: conn.KnownInode})
		}
	}
	if err != nil {
		s.Conns = s.Conns[:n]
	}
	return err
}

// dump asks for the sockets of t that are in one of the states and calls record
// with each of them.
func (c *diagConn) dump(ctx context.Context, t *table, states uint32, record func([]byte)) (torn bool, err error) {
	seq, err := c.send(diagRequest(t, states), unix.NLM_F_DUMP)
	if err != nil {
		return false, err
	}
	d := dump{seq: seq, record: record}
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		b, err := c.receive()
		if err != nil {
			return false, err
		}
		if done, err = d.add(b); err != nil {
			return false, err
		}
	}
	return d.torn, nil
}

// send sends a request and returns the number that answers have.
func (c *diagConn) send(request []byte, flags int) (seq uint32, err error) {
	req := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, flags)
	req.AddRawData(request)
	return req.Seq, unix.Sendto(c.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive returns the next datagram from the kernel.
func (c *diagConn) receive() ([]byte, error) {
	for {
		// With MSG_TRUNC, n is the size of the datagram even if that is too large.
		n, from, err := unix.Recvfrom(c.fd, c.buf[:], unix.MSG_TRUNC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not from the kernel
		}
		if n > len(c.buf) {
			return nil, fmt.Errorf("datagram of %d bytes: %w", n, errShort)
		}
		return c.buf[:n], nil
	}
}

// diagRequest returns a struct inet_diag_req_v2 or unix_diag_req.
func diagRequest(t *table, states uint32) []byte {
	const sizeofInetDiagReq, sizeofUnixDiagReq = 56, 24
	var b []byte
	if t.family == conn.Unix {
		b = make([]byte, sizeofUnixDiagReq)
		hostEndian.PutUint32(b[12:], udiagShow)
	} else {
		b = make([]byte, sizeofInetDiagReq)
		b[1] = unix.IPPROTO_TCP
		if t.typ == conn.Datagram {
			b[1] = unix.IPPROTO_UDP
		}
	}
	b[0] = uint8(t.family)
	hostEndian.PutUint32(b[4:], states)
	return b
}
