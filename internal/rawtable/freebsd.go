package rawtable

import "github.com/conntrace/conntrace/pkg/conn"

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
