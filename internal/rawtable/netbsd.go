package rawtable

import "github.com/conntrace/conntrace/pkg/conn"

// The layouts of struct kinfo_file in sys/sysctl.h and of struct kinfo_pcb in
// sys/socket.h of NetBSD, the same on every architecture. testdata/layout/netbsd.c has
// them.
const (
	netbsdInet6 = 24

	// NetBSDFileSize is the size of a record of kern.file2, which must be asked for.
	NetBSDFileSize = 120
	netbsdFileType = 16
	netbsdFileData = 64
	netbsdFilePID  = 104
	netbsdFileFD   = 108

	// NetBSDPcbSize is the size of a record of a pcblist, which must be asked for.
	NetBSDPcbSize      = 640
	netbsdPcbSocket    = 16
	netbsdPcbFamily    = 24
	netbsdPcbType      = 28
	netbsdPcbState     = 48
	netbsdPcbSrc       = 72
	netbsdPcbDst       = 336
	netbsdSockaddrSize = 264

	// struct sockaddr_in and sockaddr_in6.
	sockaddrPort = 2
	sockaddrIPv4 = 4
	sockaddrIPv6 = 8
)

// The tables of NetBSD, by the names of their sysctls.
const (
	NetBSDFiles         = "kern.file2"
	NetBSDTCP4          = "net.inet.tcp.pcblist"
	NetBSDTCP6          = "net.inet6.tcp6.pcblist"
	NetBSDUDP4          = "net.inet.udp.pcblist"
	NetBSDUDP6          = "net.inet6.udp6.pcblist"
	NetBSDUnixStream    = "net.local.stream.pcblist"
	NetBSDUnixDatagram  = "net.local.dgram.pcblist"
	NetBSDUnixSeqPacket = "net.local.seqpacket.pcblist"
)

var netbsdTables = map[string]walker{
	NetBSDFiles:         fixed("netbsd "+NetBSDFiles, NetBSDFileSize, netbsdFile),
	NetBSDTCP4:          netbsdList(NetBSDTCP4),
	NetBSDTCP6:          netbsdList(NetBSDTCP6),
	NetBSDUDP4:          netbsdList(NetBSDUDP4),
	NetBSDUDP6:          netbsdList(NetBSDUDP6),
	NetBSDUnixStream:    netbsdList(NetBSDUnixStream),
	NetBSDUnixDatagram:  netbsdList(NetBSDUnixDatagram),
	NetBSDUnixSeqPacket: netbsdList(NetBSDUnixSeqPacket),
}

func netbsdFile(b []byte, r *record, _ *stateCheck) {
	r.row.PID, r.row.FD = id(b[netbsdFilePID:]), id(b[netbsdFileFD:])
	if u32(b[netbsdFileType:]) == fileIsSocket {
		r.held = true
		r.handle = u64(b[netbsdFileData:])
	}
}

func netbsdList(table string) walker {
	return fixed("netbsd "+table, NetBSDPcbSize, func(b []byte, r *record, check *stateCheck) {
		r.handle = u64(b[netbsdPcbSocket:])
		r.row.Type = conn.Type(u32(b[netbsdPcbType:]))
		src, dst := b[netbsdPcbSrc:][:netbsdSockaddrSize], b[netbsdPcbDst:][:netbsdSockaddrSize]
		switch u32(b[netbsdPcbFamily:]) {
		case unixFamily:
			r.setUnix(src, dst)
			return
		case inetFamily:
			r.isRow = true
			r.row.Family = conn.Inet
			r.row.Laddr = laddr4(src[sockaddrIPv4:][:4], port(src[sockaddrPort:]))
			r.row.Raddr = raddr4(dst[sockaddrIPv4:][:4], port(dst[sockaddrPort:]))
		case netbsdInet6:
			r.isRow = true
			r.row.Family = conn.Inet6
			r.row.Laddr = laddr6(src[sockaddrIPv6:][:16], port(src[sockaddrPort:]))
			r.row.Raddr = raddr6(dst[sockaddrIPv6:][:16], port(dst[sockaddrPort:]))
		default:
			return
		}
		if r.row.Type == conn.Stream {
			r.setState(tcpStates, u32(b[netbsdPcbState:]), check)
		}
	})
}
