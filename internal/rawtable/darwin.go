package rawtable

import (
	"bytes"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// The layouts of macOS: sys/proc_info.h for what libproc gives, and for the pcblist_n
// tables sys/socketvar.h, sys/unpcb.h, netinet/in_pcb.h and netinet/tcp_var.h of xnu.
// testdata/layout/darwin.c has them.
const (
	darwinInet6 = 30

	// DarwinFDSize is the size of a struct proc_fdinfo.
	DarwinFDSize   = 8
	darwinFDNumber = 0
	darwinFDType   = 4

	// DarwinSocketSize is the size of a struct socket_fdinfo.
	DarwinSocketSize   = 792
	darwinSocketSo     = 160
	darwinSocketType   = 176
	darwinSocketFamily = 184
	darwinSocketKind   = 256
	darwinSocketFport  = 264
	darwinSocketLport  = 268
	darwinSocketVflag  = 288
	darwinSocketFaddr  = 296
	darwinSocketLaddr  = 312
	darwinSocketState  = 344
	darwinSocketAddr   = 280
	darwinSocketCaddr  = 535
	darwinMaxAddrSize  = 255 // SOCK_MAXADDRLEN

	// The kinds of struct socket_info that matter.
	darwinKindInet = 1 // SOCKINFO_IN
	darwinKindTCP  = 2 // SOCKINFO_TCP
	darwinKindUnix = 3 // SOCKINFO_UN

	// DarwinProcSize is the size of a struct proc_bsdinfo.
	DarwinProcSize      = 136
	darwinProcPID       = 12
	darwinProcRUID      = 28
	darwinProcComm      = 48
	darwinCommSize      = 16
	darwinProcStartSec  = 120
	darwinProcStartUsec = 128

	darwinGenSize = 24

	// Records of a pcblist_n begin with their length and their kind.
	darwinKindSocket = 0x001 // XSO_SOCKET
	darwinKindInpcb  = 0x010 // XSO_INPCB
	darwinKindTcpcb  = 0x020 // XSO_TCPCB
	darwinKindUnpcb  = 0x200 // XSO_UNPCB

	darwinInpcbSize  = 104
	darwinInpcbFport = 16
	darwinInpcbLport = 18
	darwinInpcbVflag = 44
	darwinInpcbFaddr = 48
	darwinInpcbLaddr = 64

	darwinXsocketSize   = 104
	darwinXsocketSize21 = 76 // to Darwin 21
	darwinXsocketSo     = 8
	darwinXsocketType   = 16
	darwinXsocketFamily = 40
	darwinXsocketUID    = 64

	darwinTcpcbSize  = 204
	darwinTcpcbState = 36

	darwinUnpcbSize  = 588
	darwinUnpcbAddr  = 76
	darwinUnpcbCaddr = 332
	darwinUnpcbPath  = 256 // bytes that are kept for an address
)

// The tables of macOS. The first one is made by [AppendDarwinHeld], the others have
// the names of their sysctls.
const (
	DarwinHeld         = "proc_pidfdinfo"
	DarwinTCP          = "net.inet.tcp.pcblist_n"
	DarwinUDP          = "net.inet.udp.pcblist_n"
	DarwinUnixStream   = "net.local.stream.pcblist_n"
	DarwinUnixDatagram = "net.local.dgram.pcblist_n"
)

const darwinHeldHead = 8

var darwinTables = map[string]walker{
	DarwinHeld:         fixed("darwin "+DarwinHeld, darwinHeldHead+DarwinSocketSize, darwinSocket),
	DarwinTCP:          darwinList(DarwinTCP, darwinKindInpcb),
	DarwinUDP:          darwinList(DarwinUDP, darwinKindInpcb),
	DarwinUnixStream:   darwinList(DarwinUnixStream, darwinKindUnpcb),
	DarwinUnixDatagram: darwinList(DarwinUnixDatagram, darwinKindUnpcb),
}

// AppendDarwinHeld appends a record to the table [DarwinHeld]: process and descriptor,
// which the struct socket_fdinfo that proc_pidfdinfo gives for them does not have, and
// that struct.
func AppendDarwinHeld(table []byte, pid, fd int32, info *[DarwinSocketSize]byte) []byte {
	table = appendU32(appendU32(table, uint32(pid)), uint32(fd))
	return append(table, info[:]...)
}

func appendU32(b []byte, n uint32) []byte {
	return append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
}

// DarwinSockets returns the descriptors among fds, an array of struct proc_fdinfo, that
// are sockets.
func DarwinSockets(fds []byte) (sockets []int32, err error) {
	walk := fixed("darwin proc_fdinfo", DarwinFDSize, func(b []byte, _ *record, _ *stateCheck) {
		if u32(b[darwinFDType:]) == fileIsSocket {
			sockets = append(sockets, id(b[darwinFDNumber:]))
		}
	})
	return sockets, walk(fds, func(*record) {})
}

// DarwinProcess decodes a struct proc_bsdinfo.
func DarwinProcess(b []byte) (*conn.Process, error) {
	if len(b) != DarwinProcSize {
		return nil, &SizeError{Table: "darwin proc_bsdinfo", Got: len(b), Want: DarwinProcSize}
	}
	comm, _, _ := bytes.Cut(b[darwinProcComm:][:darwinCommSize], []byte{0})
	return &conn.Process{
		PID:    id(b[darwinProcPID:]),
		UID:    u32(b[darwinProcRUID:]),
		HasUID: true,
		Start:  time.UnixMicro(int64(u64(b[darwinProcStartSec:]))*1e6 + int64(u64(b[darwinProcStartUsec:]))),
		Comm:   string(comm),
	}, nil
}

// darwinFamily returns the family of an inet socket.
func darwinFamily(n uint32) (family conn.Family, ok bool) {
	switch n {
	case inetFamily:
		return conn.Inet, true
	case darwinInet6:
		return conn.Inet6, true
	}
	return 0, false
}

func darwinSocket(b []byte, r *record, check *stateCheck) {
	r.held = true
	r.row.PID, r.row.FD = id(b), id(b[4:])
	b = b[darwinHeldHead:]
	r.handle = u64(b[darwinSocketSo:])
	r.row.Type = conn.Type(u32(b[darwinSocketType:]))
	number, kind := u32(b[darwinSocketFamily:]), u32(b[darwinSocketKind:])
	family, inet := darwinFamily(number)
	switch {
	case inet && (kind == darwinKindInet || kind == darwinKindTCP):
		// The ports are in network byte order, in an int.
		r.setInet(family, b[darwinSocketVflag], b[darwinSocketLaddr:], port(b[darwinSocketLport:]), b[darwinSocketFaddr:], port(b[darwinSocketFport:]))
		if kind == darwinKindTCP {
			r.setState(tcpStates, u32(b[darwinSocketState:]), check)
		}
	case number == unixFamily && kind == darwinKindUnix:
		r.setUnix(b[darwinSocketAddr:][:darwinMaxAddrSize], b[darwinSocketCaddr:][:darwinMaxAddrSize])
	}
}

// darwinList is a walker of a pcblist_n: a struct xinpgen, records in groups, of which
// each has the parts of a socket and begins with one of the kind first, and a struct
// xinpgen again. A record is padded to 8 bytes.
func darwinList(table string, first uint32) walker {
	table = "darwin " + table
	return func(raw []byte, visit func(*record)) error {
		if len(raw) == 0 {
			return nil // no such sockets
		}
		if len(raw) < 2*darwinGenSize {
			return &SizeError{Table: table, Got: len(raw), Want: 2 * darwinGenSize}
		}
		if got := u32(raw); got != darwinGenSize {
			return sizeError(table, uint64(got), darwinGenSize)
		}
		end := len(raw) - darwinGenSize
		if got := u32(raw[end:]); got != darwinGenSize {
			return sizeError(table, uint64(got), darwinGenSize)
		}
		var check stateCheck
		var g darwinGroup
		finish := func(off int) error {
			if g.size == 0 {
				return nil
			}
			r := record{off: off - g.size, end: off, row: conn.Conn{FD: -1}}
			if !g.decode(&r, table == "darwin "+DarwinTCP, &check) {
				return &SizeError{Table: table, Got: off, Want: len(raw)} // a part is missing
			}
			visit(&r)
			g = darwinGroup{}
			return nil
		}
		off := darwinGenSize
		for off < end {
			rest := raw[off:end]
			if len(rest) < 8 {
				return &SizeError{Table: table, Got: len(rest), Want: 8}
			}
			size, kind := u32(rest), u32(rest[4:])
			padded := (uint64(size) + 7) &^ 7
			if size < 8 || padded > uint64(len(rest)) {
				return sizeError(table, uint64(size), len(rest))
			}
			if kind == first {
				if err := finish(off); err != nil {
					return err
				}
			} else if g.size == 0 {
				return &SizeError{Table: table, Got: 0, Want: off} // no beginning
			}
			if err := g.add(table, kind, rest[:size]); err != nil {
				return err
			}
			g.size += int(padded)
			off += int(padded)
		}
		if err := finish(off); err != nil {
			return err
		}
		return check.result(table)
	}
}

// A darwinGroup is the records of a socket.
type darwinGroup struct {
	size                      int
	inpcb, unpcb, socket, tcp []byte
}

// add takes a record into the group. Buffers and statistics are of no use here.
func (g *darwinGroup) add(table string, kind uint32, b []byte) error {
	want := 0
	switch kind {
	case darwinKindInpcb:
		g.inpcb, want = b, darwinInpcbSize
	case darwinKindUnpcb:
		g.unpcb, want = b, darwinUnpcbSize
	case darwinKindTcpcb:
		g.tcp, want = b, darwinTcpcbSize
	case darwinKindSocket:
		g.socket, want = b, darwinXsocketSize
		if len(b) == darwinXsocketSize21 {
			return nil
		}
	default:
		return nil
	}
	// Some versions say how long a record is when padded.
	if len(b) != want && len(b) != (want+7)&^7 {
		return &SizeError{Table: table, Got: len(b), Want: want}
	}
	return nil
}

// decode fills r; ok is false if a part that must be there is not.
func (g *darwinGroup) decode(r *record, tcp bool, check *stateCheck) (ok bool) {
	if g.socket == nil || tcp && g.tcp == nil {
		return false
	}
	r.handle = u64(g.socket[darwinXsocketSo:])
	r.row.Type = conn.Type(u16(g.socket[darwinXsocketType:]))
	r.setUID(u32(g.socket[darwinXsocketUID:]))
	number := u32(g.socket[darwinXsocketFamily:])
	family, inet := darwinFamily(number)
	switch {
	case inet && g.inpcb != nil:
		b := g.inpcb
		r.setInet(family, b[darwinInpcbVflag], b[darwinInpcbLaddr:], port(b[darwinInpcbLport:]), b[darwinInpcbFaddr:], port(b[darwinInpcbFport:]))
		if tcp {
			r.setState(tcpStates, u32(g.tcp[darwinTcpcbState:]), check)
		}
	case number == unixFamily && g.unpcb != nil:
		r.setUnix(g.unpcb[darwinUnpcbAddr:][:darwinUnpcbPath], g.unpcb[darwinUnpcbCaddr:][:darwinUnpcbPath])
	}
	return true
}
