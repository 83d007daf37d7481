package rawtable

import (
	"bytes"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// The layouts of FreeBSD 12 to 15, which have sizes and addresses of 64 bits on every
// architecture: struct xinpgen, xinpcb, xtcpcb, xunpgen, xunpcb, xfile in sys/file.h,
// sys/unpcb.h, netinet/in_pcb.h, netinet/tcp_var.h. testdata/layout/freebsd.c has them.
const (
	freebsdInet6 = 28

	freebsdInpGenSize = 64
	freebsdUnpGenSize = 32

	freebsdInpcbSize     = 400
	freebsdInpcbSocket   = 16
	freebsdInpcbFamily   = 108
	freebsdInpcbUID      = 128
	freebsdInpcbType     = 164
	freebsdInpcbFport    = 252
	freebsdInpcbLport    = 254
	freebsdInpcbFaddr    = 256
	freebsdInpcbLaddr    = 272
	freebsdInpcbVflag    = 392
	freebsdInpcbVflag386 = 388

	freebsdTcpcbSize  = 744
	freebsdTcpcbInpcb = 8
	freebsdTcpcbState = 568

	freebsdUnpcbSize   = 904
	freebsdUnpcbAddr   = 152
	freebsdUnpcbSocket = 672
	freebsdUnpcbUID    = 784
	freebsdUnpcbType   = 820
	freebsdUnpcbPath   = 256 // bytes that are kept for an address

	freebsdFileSize = 128
	freebsdFilePID  = 8
	freebsdFileFD   = 16
	freebsdFileType = 32
	freebsdFileData = 56
)

// The tables of FreeBSD, by the names of their sysctls.
const (
	FreeBSDFiles         = "kern.file"
	FreeBSDTCP           = "net.inet.tcp.pcblist"
	FreeBSDUDP           = "net.inet.udp.pcblist"
	FreeBSDUnixStream    = "net.local.stream.pcblist"
	FreeBSDUnixDatagram  = "net.local.dgram.pcblist"
	FreeBSDUnixSeqPacket = "net.local.seqpacket.pcblist"
)

func freebsdTables(goarch string) map[string]walker {
	vflag := freebsdInpcbVflag
	if goarch == "386" {
		vflag = freebsdInpcbVflag386
	}
	inpcb := func(b []byte, r *record) {
		r.handle = u64(b[freebsdInpcbSocket:])
		r.row.Type = conn.Type(u16(b[freebsdInpcbType:]))
		r.setUID(u32(b[freebsdInpcbUID:]))
		family := conn.Inet
		switch u32(b[freebsdInpcbFamily:]) {
		case inetFamily:
		case freebsdInet6:
			family = conn.Inet6
		default:
			return // TIME_WAIT, which has no socket any more
		}
		r.setInet(family, b[vflag], b[freebsdInpcbLaddr:], port(b[freebsdInpcbLport:]), b[freebsdInpcbFaddr:], port(b[freebsdInpcbFport:]))
	}
	tcpcb := func(b []byte, r *record, check *stateCheck) {
		if inpcb(b[freebsdTcpcbInpcb:], r); r.isRow {
			r.setState(tcpStates, u32(b[freebsdTcpcbState:]), check)
		}
	}
	udp := func(b []byte, r *record, _ *stateCheck) { inpcb(b, r) }
	return map[string]walker{
		FreeBSDFiles:         fixed("freebsd "+FreeBSDFiles, freebsdFileSize, freebsdFile),
		FreeBSDTCP:           freebsdList(FreeBSDTCP, freebsdInpGenSize, freebsdTcpcbSize, tcpcb),
		FreeBSDUDP:           freebsdList(FreeBSDUDP, freebsdInpGenSize, freebsdInpcbSize, udp),
		FreeBSDUnixStream:    freebsdList(FreeBSDUnixStream, freebsdUnpGenSize, freebsdUnpcbSize, freebsdUnpcb),
		FreeBSDUnixDatagram:  freebsdList(FreeBSDUnixDatagram, freebsdUnpGenSize, freebsdUnpcbSize, freebsdUnpcb),
		FreeBSDUnixSeqPacket: freebsdList(FreeBSDUnixSeqPacket, freebsdUnpGenSize, freebsdUnpcbSize, freebsdUnpcb),
	}
}

func freebsdUnpcb(b []byte, r *record, _ *stateCheck) {
	r.handle = u64(b[freebsdUnpcbSocket:])
	r.row.Type = conn.Type(u16(b[freebsdUnpcbType:]))
	r.setUID(u32(b[freebsdUnpcbUID:]))
	// psutil has no remote address here.
	r.setUnix(b[freebsdUnpcbAddr:][:freebsdUnpcbPath], nil)
}

func freebsdFile(b []byte, r *record, _ *stateCheck) {
	r.row.PID, r.row.FD = id(b[freebsdFilePID:]), id(b[freebsdFileFD:])
	if u16(b[freebsdFileType:]) == fileIsSocket {
		r.held = true
		r.handle = u64(b[freebsdFileData:])
	}
}

// freebsdList is a walker of a pcblist: a struct xinpgen or xunpgen, records that
// begin with their length, and once more what it began with.
func freebsdList(table string, gen, size int, decode func(b []byte, r *record, check *stateCheck)) walker {
	table = "freebsd " + table
	return func(raw []byte, visit func(*record)) error {
		if len(raw) == 0 {
			return nil // the kernel has no such sockets
		}
		if len(raw) < 2*gen {
			return &SizeError{Table: table, Got: len(raw), Want: 2 * gen}
		}
		if got := u64(raw); got != uint64(gen) {
			return sizeError(table, got, gen)
		}
		var check stateCheck
		for off := gen; ; off += size {
			if len(raw)-off < gen {
				return &SizeError{Table: table, Got: len(raw), Want: off + gen}
			}
			switch got := u64(raw[off:]); {
			case got == uint64(gen):
				return check.result(table)
			case got != uint64(size):
				return sizeError(table, got, size)
			case len(raw)-off < size:
				return &SizeError{Table: table, Got: len(raw), Want: off + size + gen}
			}
			r := record{off: off, end: off + size, row: conn.Conn{FD: -1}}
			decode(raw[off:off+size], &r, &check)
			visit(&r)
		}
	}
}

// A freebsdProc is a layout of struct kinfo_proc in sys/user.h.
type freebsdProc struct {
	size, pid, ruid, startSec, startUsec, comm int
	wide                                       bool // time_t is 64 bits wide
}

const freebsdCommSize = 20 // COMMLEN + 1

// freebsdProcs has the layouts by architecture: the struct holds pointers and longs.
var freebsdProcs = map[string]freebsdProc{
	"386":     {size: 768, pid: 40, ruid: 140, startSec: 280, startUsec: 284, comm: 367},
	"arm":     {size: 816, pid: 40, ruid: 140, startSec: 280, startUsec: 288, comm: 383, wide: true},
	"amd64":   {size: 1088, pid: 72, ruid: 172, startSec: 336, startUsec: 344, comm: 447, wide: true},
	"arm64":   {size: 1088, pid: 72, ruid: 172, startSec: 336, startUsec: 344, comm: 447, wide: true},
	"riscv64": {size: 1088, pid: 72, ruid: 172, startSec: 336, startUsec: 344, comm: 447, wide: true},
}

// FreeBSDProcess decodes the struct kinfo_proc that the sysctl kern.proc.pid gives.
func FreeBSDProcess(b []byte, goarch string) (*conn.Process, error) {
	l := freebsdProcs[goarch]
	if len(b) != l.size || l.size == 0 || u32(b) != uint32(l.size) { // ki_structsize
		return nil, &SizeError{Table: "freebsd kinfo_proc", Got: len(b), Want: l.size}
	}
	sec, usec := int64(id(b[l.startSec:])), int64(id(b[l.startUsec:])) // below 1,000,000
	if l.wide {
		sec = int64(u64(b[l.startSec:]))
	}
	comm, _, _ := bytes.Cut(b[l.comm:][:freebsdCommSize], []byte{0})
	return &conn.Process{PID: id(b[l.pid:]), UID: u32(b[l.ruid:]), HasUID: true, Start: time.Unix(sec, usec*1000), Comm: string(comm)}, nil
}
