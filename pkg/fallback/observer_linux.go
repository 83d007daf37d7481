package fallback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/procinfo"
	"github.com/conntrace/conntrace/pkg/conn"
)

// A linuxObserver looks at the tables of one network namespace without asking who
// holds the sockets, and searches for the processes of new ones alone.
type linuxObserver struct {
	kinds    conn.Kind
	ns       Namespace
	list     func(ctx context.Context, row func(c *conn.Conn)) ([]error, error)
	diag     *diagConn // nil with procfs
	destroy  *destroyReader
	counters *counterReader // nil if there are none
	owners   *ownerSearch
	procs    *procinfo.Reader
	ports    portRange
}

// observe implements [observable]. What other tables there are is for snapshots.
func (s *linuxSource) observe(q Query) (observer, error) {
	if _, ok := s.holders.(procHolders); !ok {
		return nil, nil
	}
	if err := q.Kind.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	o := &linuxObserver{kinds: q.Kind, ns: s.tables.Home(), procs: s.procs, ports: localPorts()}
	switch t := s.tables.(type) {
	case sockDiag:
		err := o.ns.Do(func() (err error) {
			o.diag, err = t.open()
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		states := uint32(tcpStates)
		// Where this is refused, closes are polled for as well.
		if o.destroy, _ = openDestroyReader(o.ns, destroyBuffer); o.destroy != nil {
			states &^= 1 << conn.StatusTimeWait
		}
		o.list = func(ctx context.Context, row func(c *conn.Conn)) ([]error, error) {
			return o.diag.list(ctx, o.kinds, states, row)
		}
	case procTables:
		if o.ns.dir == callerDir {
			o.ns.dir = threadDir()
		}
		o.list = func(ctx context.Context, row func(c *conn.Conn)) ([]error, error) {
			return t.list(ctx, o.ns, o.kinds, row)
		}
	default:
		return nil, nil
	}
	var err error
	if o.owners, err = newOwnerSearch(s.root); err != nil {
		o.close()
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	o.counters, _ = openCounters(o.ns.dir)
	return o, nil
}

// threadDir returns the directory of the calling thread, for other threads to use:
// that of the process, unless the thread is in another network namespace.
func threadDir() string {
	const process = "/proc/self"
	thread, err := os.Readlink(callerDir)
	if a, errA := netnsOf(process); err == nil && errA == nil {
		if b, errB := netnsOf(callerDir); errB == nil && a.inode != b.inode {
			return "/proc/" + thread
		}
	}
	return process
}

func (o *linuxObserver) close() error {
	var errs []error
	if o.diag != nil {
		o.diag.close()
	}
	if o.destroy != nil {
		errs = append(errs, o.destroy.close())
	}
	if o.counters != nil {
		errs = append(errs, o.counters.close())
	}
	if o.owners != nil {
		o.owners.close()
	}
	return errors.Join(errs...)
}

func (o *linuxObserver) look(ctx context.Context, row func(c *conn.Conn)) ([]error, error) {
	return o.list(ctx, func(c *conn.Conn) {
		c.FD = -1
		if o.ns.inode != 0 {
			c.NetNS = o.ns.inode
			c.Known |= conn.KnownNetNS
		}
		row(c)
	})
}

// identify implements [observer].
func (o *linuxObserver) identify(ctx context.Context, sockets []*polled, listeners listeners) (hidden int, err error) {
	hidden, err = o.owners.find(ctx, sockets, listeners, o.exists)
	procs := make(map[int32]*conn.Process)
	for _, s := range sockets {
		if s.PID != 0 && s.Process == nil {
			p, ok := procs[s.PID]
			if !ok {
				p, _ = o.procs.Lookup(s.PID) // unknown if it has ended meanwhile
				procs[s.PID] = p
			}
			s.Process = p
		}
		if s.phase == connected && s.direction == 0 && o.diag != nil {
			s.direction = o.openedBy(&s.Conn)
		}
	}
	return hidden, err
}

// exists reports whether the socket c is still there, as far as the kernel can be
// asked for one.
func (o *linuxObserver) exists(c *conn.Conn) bool {
	if o.diag == nil || c.Status == conn.StatusListen {
		return true
	}
	return o.diag.find(c, c.Cookie, func([]byte) {}) != unix.ENOENT
}

// openedBy asks the kernel who opened a connection; 0 if it cannot tell.
func (o *linuxObserver) openedBy(c *conn.Conn) conn.Direction {
	if c.Status != conn.StatusEstablished && c.Status != conn.StatusCloseWait {
		return 0 // a FIN may be among what was acknowledged
	}
	var direction conn.Direction
	o.diag.find(c, c.Cookie, func(record []byte) {
		if len(record) < sizeofInetDiagMsg || record[1] != uint8(conn.StatusEstablished) && record[1] != uint8(conn.StatusCloseWait) {
			return
		}
		if info, ok := infoOf(record); ok {
			direction = info.openedBy()
		}
	})
	return direction
}

// peerFIN reports whether the peer of a connection that was shut down from here has
// shut it down too. What the connection leaves in TIME_WAIT still waits in FIN_WAIT2 if not.
func (o *linuxObserver) peerFIN(c *conn.Conn) bool {
	waits := false
	o.diag.find(c, noCookie, func(record []byte) {
		waits = len(record) > 1 && record[1] == uint8(conn.StatusFinWait2)
	})
	return !waits
}

func (o *linuxObserver) holds(c *conn.Conn) bool { return o.owners.holds(c) }

func (o *linuxObserver) count() (counters, bool) {
	if o.counters == nil {
		return counters{}, false
	}
	return o.counters.read()
}

func (o *linuxObserver) ephemeral() portRange { return o.ports }

// localPorts returns net.ipv4.ip_local_port_range of the caller's namespace.
func localPorts() portRange {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if fields := strings.Fields(string(text)); err == nil && len(fields) == 2 {
		first, ok1 := parseUint([]byte(fields[0]), 16)
		last, ok2 := parseUint([]byte(fields[1]), 16)
		if ok1 && ok2 {
			return portRange{uint16(first), uint16(last)}
		}
	}
	return ephemeralPorts("linux")
}

func (o *linuxObserver) tellsCloses() bool { return o.destroy != nil }

func (o *linuxObserver) wait(ctx context.Context, until time.Time) {
	if o.destroy != nil {
		o.destroy.wait(ctx, until)
		return
	}
	sleep(ctx, until)
}

func (o *linuxObserver) closes(f func(d *destroyed)) (lost uint64, err error) {
	return o.destroy.read(func(record []byte) error {
		d, err := decodeDestroyed(record, o.ns.inode, o.peerFIN)
		if err != nil {
			return fmt.Errorf("sock_diag: destroyed socket: %w", err)
		}
		if o.kinds.Has(d.Kind()) {
			f(d)
		}
		return nil
	})
}

// list calls row with each TCP socket of the kinds that is in one of the states. row
// may change what it gets, but not keep it.
func (c *diagConn) list(ctx context.Context, kinds conn.Kind, states uint32, row func(c *conn.Conn)) (warnings []error, err error) {
	if c.devices == nil {
		c.devices = make(map[uint64]uint32)
	}
	clear(c.devices)
	for i := range tables {
		t := &tables[i]
		if !kinds.Has(t.kind) || t.typ != conn.Stream {
			continue
		}
		var s conn.Conn
		torn, err := c.dump(ctx, t, states, func(b []byte) {
			s = conn.Conn{Type: conn.Stream}
			if err := decodeInetDiag(b, &s); err != nil {
				warnings = append(warnings, fmt.Errorf("sock_diag: %s: %w", t.file, err))
				return
			}
			if b[2] == timerTimeWait {
				s.Status = conn.StatusTimeWait
			}
			if device := hostEndian.Uint32(b[40:]); device != 0 {
				c.devices[s.Cookie] = device
			}
			row(&s)
		})
		if err == unix.ENOENT && t.optional() {
			continue
		}
		if err != nil {
			return warnings, fmt.Errorf("%s: %w", t.file, err)
		}
		if torn {
			warnings = append(warnings, fmt.Errorf("sock_diag: %s: the table changed while it was read", t.file))
		}
	}
	return warnings, nil
}

// noCookie is INET_DIAG_NOCOOKIE: any socket with the addresses.
const noCookie = 1<<64 - 1

// find calls record with the answer for one TCP socket, with its tcp_info. The error
// is ENOENT if there is none.
func (c *diagConn) find(s *conn.Conn, cookie uint64, record func([]byte)) error {
	t := &tables[0]
	if s.Family == conn.Inet6 {
		t = &tables[1]
	}
	b := diagRequest(t, allStates)
	b[2] = 1 << (attrInetInfo - 1) // idiag_ext
	id := b[8:]                    // struct inet_diag_sockid
	putPort(id[0:], s.Laddr)
	putPort(id[2:], s.Raddr)
	putIP(id[4:20], s.Laddr)
	putIP(id[20:36], s.Raddr)
	hostEndian.PutUint32(id[36:], c.devices[s.Cookie]) // idiag_if
	hostEndian.PutUint32(id[40:], uint32(cookie))
	hostEndian.PutUint32(id[44:], uint32(cookie>>32))
	seq, err := c.send(b, 0)
	if err != nil {
		return err
	}
	answered := false
	d := dump{seq: seq, record: func(b []byte) {
		answered = true
		record(b)
	}}
	for !answered {
		b, err := c.receive()
		if err != nil {
			return err
		}
		if done, err := d.add(b); done || err != nil {
			return err
		}
	}
	return nil
}

// list calls row with each TCP socket of the kinds in ns.
func (p procTables) list(ctx context.Context, ns Namespace, kinds conn.Kind, row func(c *conn.Conn)) (warnings []error, err error) {
	for i := range tables {
		t := &tables[i]
		if !kinds.Has(t.kind) || t.typ != conn.Stream {
			continue
		}
		if err := ctx.Err(); err != nil {
			return warnings, err
		}
		f, err := os.Open(ns.dir + "/net/" + t.file)
		if errors.Is(err, os.ErrNotExist) && t.optional() {
			continue
		}
		if err != nil {
			return warnings, err
		}
		err = eachInetRow(f, f.Name(), t.family, t.typ, &warnings, func(c *conn.Conn, timeWait bool) {
			if timeWait {
				c.Status = conn.StatusTimeWait
			}
			row(c)
		})
		f.Close()
		if err != nil {
			return warnings, err
		}
	}
	return warnings, nil
}

// putPort and putIP write a part of struct inet_diag_sockid, which is in network byte
// order.
func putPort(b []byte, a conn.Addr) { binary.BigEndian.PutUint16(b, a.Port()) }

func putIP(b []byte, a conn.Addr) { copy(b, a.IP().AsSlice()) }
