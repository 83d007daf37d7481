package rawtable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"

	"github.com/conntrace/conntrace/pkg/conn"
)

// Tables are what a Unix system said of its sockets: raw tables, by name. The names
// are those of the sysctl where there is one.
type Tables map[string][]byte

// Options say which rows [Tables.Decode] shall make.
type Options struct {
	PID     int32 // only of this process; 0: of the whole system
	Holders bool  // fill Conn.Holders
}

// A Unix is the tables of a Unix system, for one architecture. All that there are
// are little-endian.
type Unix struct {
	name   string
	tables map[string]walker

	// oneRow: a socket that many descriptors hold is one row, with the first of them, when
	// the whole system is asked for. Otherwise it is a row for each.
	oneRow bool

	// unowned: sockets that no descriptor in the tables holds are rows too.
	unowned bool

	// joins: a table of descriptors says who holds the sockets in other tables.
	// Otherwise a table that tells of descriptors has their sockets, too.
	joins bool
}

// A walker takes a table apart: it calls visit with each record. Record and row are
// good until visit returns.
type walker func(raw []byte, visit func(*record)) error

// A record is a record of a table.
type record struct {
	off, end int    // where it is in the table
	handle   uint64 // the kernel's address of the socket, or a hash of it; 0: not told

	// A record is of a descriptor (held), of a socket (isRow), or of both.
	held  bool
	isRow bool
	row   conn.Conn // FD is -1 and PID 0 unless held
}

// ErrAddressesHidden is the warning of a system that does not say who holds which
// socket; the rows are there, without owners.
var ErrAddressesHidden = fmt.Errorf("the kernel hides the addresses that join sockets with their processes: %w; with kern.expose_address=2 it shows them",
	fs.ErrPermission)

// ErrWithheld is the warning of macOS when its tables of all sockets have none but
// those that are known already. macOS 27 gives no other ones to some programs and says
// nothing, so that what is not there is unknown: it may exist.
var ErrWithheld = errors.New("macOS named no socket of any other user, and may have withheld them: run as root, or start conntrace from a signed program")

// UnixOf returns the tables of the system with these names (runtime.GOOS and
// runtime.GOARCH). The error wraps [errors.ErrUnsupported] if they are not known.
func UnixOf(goos, goarch string) (*Unix, error) {
	little := slices.Contains([]string{"386", "amd64", "arm", "arm64", "riscv64"}, goarch)
	switch {
	case !little:
	case goos == "darwin":
		return &Unix{name: goos, tables: darwinTables, unowned: true}, nil
	case goos == "freebsd":
		return &Unix{name: goos, tables: freebsdTables(goarch), oneRow: true, joins: true}, nil
	case goos == "openbsd":
		return &Unix{name: goos, tables: openbsdTables(goarch)}, nil
	case goos == "netbsd":
		return &Unix{name: goos, tables: netbsdTables, joins: true}, nil
	case goos == "illumos" || goos == "solaris":
		return &Unix{name: goos, tables: illumosTables, unowned: true}, nil
	}
	return nil, fmt.Errorf("the socket tables of %s/%s are not known: %w", goos, goarch, errors.ErrUnsupported)
}

// Decode makes the rows of tables, in the way of psutil on that system. Warnings are
// [*StateError] and what else costs rows or owners, but leaves the rest sound. A
// [*SizeError] means that there is no answer.
func (u *Unix) Decode(t Tables, o Options) (rows []conn.Conn, warnings []error, err error) {
	var sockets []record // without an owner yet
	var owned []record   // with their owners
	hidden := false      // who holds which socket
	holders := make(map[uint64][]conn.Holder)
	for _, name := range slices.Sorted(maps.Keys(t)) {
		walk, ok := u.tables[name]
		if !ok {
			return nil, nil, fmt.Errorf("%s has no table %q", u.name, name)
		}
		err := walk(t[name], func(r *record) {
			if r.held && r.handle != 0 {
				holders[r.handle] = append(holders[r.handle], conn.Holder{PID: r.row.PID, FD: r.row.FD})
			}
			if r.row.Kind() == 0 {
				r.isRow = false // a raw socket
			}
			switch {
			case r.held && r.isRow, r.isRow && r.row.PID != 0:
				owned = append(owned, *r)
			case r.isRow:
				sockets = append(sockets, *r)
			case r.held && r.handle == 0 && u.joins:
				hidden = true
			}
		})
		if errors.As(err, new(*StateError)) {
			warnings = append(warnings, err)
		} else if err != nil {
			return nil, nil, err
		}
	}

	j := joiner{u: u, o: o, holders: holders}
	if _, ok := t[DarwinHeld]; ok && len(t) > 1 && !slices.ContainsFunc(sockets, func(s record) bool { return len(holders[s.handle]) == 0 }) {
		warnings = append(warnings, ErrWithheld)
	}
	if hidden {
		warnings = append(warnings, ErrAddressesHidden)
	}
	for i := range owned {
		j.add(owned[i].row, owned[i].handle)
	}
	seen := make(map[uint64]bool) // a socket of both IP versions may be in two tables
	for i := range sockets {
		s := &sockets[i]
		if s.handle != 0 && seen[s.handle] {
			continue
		}
		seen[s.handle] = true
		j.addSocket(s, hidden)
	}
	return j.rows, warnings, nil
}

// A joiner gives sockets their owners.
type joiner struct {
	u       *Unix
	o       Options
	holders map[uint64][]conn.Holder
	rows    []conn.Conn
}

// addSocket makes the rows of a socket. hidden says that it may have an owner that
// cannot be told.
func (j *joiner) addSocket(s *record, hidden bool) {
	holders := j.holders[s.handle]
	if len(holders) == 0 {
		if j.u.unowned || hidden {
			j.add(s.row, 0)
		}
		return
	}
	if !j.u.joins {
		return // its rows are there already
	}
	for _, h := range holders {
		if j.o.PID != 0 && h.PID != j.o.PID {
			continue
		}
		row := s.row
		row.PID, row.FD = h.PID, h.FD
		j.add(row, s.handle)
		if j.u.oneRow && j.o.PID == 0 {
			break
		}
	}
}

func (j *joiner) add(row conn.Conn, handle uint64) {
	if j.o.PID != 0 && row.PID != j.o.PID {
		return
	}
	if j.o.Holders && handle != 0 {
		row.Holders = j.holders[handle]
		row.Known |= conn.KnownHolders
	}
	j.rows = append(j.rows, row)
}

// Filter returns t with nothing in it but what the process pid holds, and what
// begins and ends each table. It is for recordings, which shall not tell of others.
func (u *Unix) Filter(t Tables, pid int32) (Tables, error) {
	own := make(map[uint64]bool)
	each := func(visit func(name string, r *record)) error {
		for name, raw := range t {
			walk, ok := u.tables[name]
			if !ok {
				return fmt.Errorf("%s has no table %q", u.name, name)
			}
			err := walk(raw, func(r *record) { visit(name, r) })
			if err != nil && !errors.As(err, new(*StateError)) {
				return err
			}
		}
		return nil
	}
	err := each(func(_ string, r *record) {
		if r.row.PID == pid && r.handle != 0 {
			own[r.handle] = true
		}
	})
	if err != nil {
		return nil, err
	}
	kept, last := make(Tables), make(map[string]int)
	err = each(func(name string, r *record) {
		kept[name] = append(kept[name], t[name][last[name]:r.off]...)
		last[name] = r.end
		if r.row.PID == pid || r.row.PID == 0 && own[r.handle] {
			kept[name] = append(kept[name], t[name][r.off:r.end]...)
		}
	})
	if err != nil {
		return nil, err
	}
	for name := range t {
		kept[name] = append(kept[name], t[name][last[name]:]...)
	}
	return kept, nil
}

// tcpStates are the TCPS_ states of netinet/tcp_fsm.h, the same on macOS and all BSDs.
var tcpStates = states{
	conn.StatusClose, conn.StatusListen, conn.StatusSynSent, conn.StatusSynRecv, conn.StatusEstablished, conn.StatusCloseWait,
	conn.StatusFinWait1, conn.StatusClosing, conn.StatusLastAck, conn.StatusFinWait2, conn.StatusTimeWait,
}

const (
	unixFamily = 1 // AF_UNIX and AF_INET have these numbers everywhere
	inetFamily = 2

	fileIsSocket = 2 // DTYPE_SOCKET of sys/file.h, PROX_FDTYPE_SOCKET of macOS

	sunPath = 2 // in struct sockaddr_un of macOS and the BSDs, behind its length and family
)

func u16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func u32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func u64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// id returns a process ID or descriptor, which is an int.
func id(b []byte) int32 { return int32(u32(b)) }

// port returns a port in network byte order.
func port(b []byte) uint16 { return binary.BigEndian.Uint16(b) }

// laddr4 returns a local IPv4 address. psutil shows one that is not bound as
// 0.0.0.0:0 on these systems.
func laddr4(ip []byte, port uint16) conn.Addr { return conn.AddrIPv4Exact([4]byte(ip), port) }

// laddr6 is laddr4 for IPv6.
func laddr6(ip []byte, port uint16) conn.Addr { return conn.AddrIPv6Exact([16]byte(ip), port) }

// raddr4 returns a remote IPv4 address: none if the port is 0, as in psutil.
func raddr4(ip []byte, port uint16) conn.Addr { return conn.AddrIPv4([4]byte(ip), port) }

// raddr6 is raddr4 for IPv6.
func raddr6(ip []byte, port uint16) conn.Addr { return conn.AddrIPv6([16]byte(ip), port) }

// mapped returns the IPv4 address at the end of b as an IPv4-mapped one.
func mapped(b []byte) []byte {
	return append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, b[12:16]...)
}

// setInet sets the addresses of r from the unions that macOS and FreeBSD have: an
// IPv6 address, or 12 bytes and an IPv4 address. The family is the socket's own; which
// of its addresses are valid is in vflag. Only a connection between IPv4-mapped ones
// has INP_IPV4 alone in an IPv6 socket.
func (r *record) setInet(family conn.Family, vflag byte, laddr []byte, lport uint16, faddr []byte, fport uint16) {
	const ipv4, ipv6, offset = 1, 2, 12 // INP_IPV4, INP_IPV6
	r.isRow = true
	r.row.Family = family
	switch {
	case family == conn.Inet:
		r.row.Laddr, r.row.Raddr = laddr4(laddr[offset:16], lport), raddr4(faddr[offset:16], fport)
	case vflag&(ipv4|ipv6) == ipv4:
		r.row.Laddr, r.row.Raddr = laddr6(mapped(laddr), lport), raddr6(mapped(faddr), fport)
	default:
		r.row.Laddr, r.row.Raddr = laddr6(laddr[:16], lport), raddr6(faddr[:16], fport)
	}
}

// setUnix sets the addresses of r from two struct sockaddr_un. The second one may be
// nil.
func (r *record) setUnix(laddr, raddr []byte) {
	r.isRow = true
	r.row.Family = conn.Unix
	r.row.Laddr, r.row.Raddr = conn.AddrUnix(sockaddrPath(laddr)), conn.AddrUnix(sockaddrPath(raddr))
}

// sockaddrPath returns the path in a struct sockaddr_un. It ends at its first NUL, or
// where sun_len says; the space that the kernel gives it may be smaller than that.
func sockaddrPath(b []byte) string {
	if len(b) <= sunPath || b[0] <= sunPath || b[1] != unixFamily {
		return ""
	}
	path := b[sunPath:min(int(b[0]), len(b))]
	return conn.AddrSunPath(path).Path()
}

// setState sets the status of a TCP socket. If it is unknown, r is no row.
func (r *record) setState(known states, state uint32, check *stateCheck) {
	if status, ok := known.lookup(state); ok {
		r.row.Status = status
		return
	}
	check.leaveOut(state)
	r.isRow = false
}

// fixed is a walker of records of one size.
func fixed(table string, size int, decode func(b []byte, r *record, check *stateCheck)) walker {
	return func(raw []byte, visit func(*record)) error {
		if len(raw)%size != 0 {
			return &SizeError{Table: table, Got: len(raw), Want: (len(raw)/size + 1) * size}
		}
		var check stateCheck
		for off := 0; off < len(raw); off += size {
			r := record{off: off, end: off + size, row: conn.Conn{FD: -1}}
			decode(raw[off:off+size], &r, &check)
			visit(&r)
		}
		return check.result(table)
	}
}

// setUID sets who owns the socket.
func (r *record) setUID(uid uint32) {
	r.row.UID = uid
	r.row.Known |= conn.KnownUID
}

// sizeError is for a record that says that it has got bytes.
func sizeError(table string, got uint64, want int) error {
	return &SizeError{Table: table, Got: int(min(got, math.MaxInt32)), Want: want}
}
