package rawtable

import "github.com/conntrace/conntrace/pkg/conn"

// The layouts of the structs mib2_tcpConnEntry, mib2_tcp6ConnEntry, mib2_udpEntry and
// mib2_udp6Entry in inet/mib2.h of illumos, for programs of 64 bits and of 32.
// testdata/layout/illumos.c has them.
const (
	illumosTCP4Size  = 68
	illumosTCP4State = 0
	illumosTCP4Laddr = 4
	illumosTCP4Lport = 8
	illumosTCP4Raddr = 12
	illumosTCP4Rport = 16
	illumosTCP4PID   = 56

	illumosTCP6Size  = 96
	illumosTCP6Laddr = 0
	illumosTCP6Lport = 16
	illumosTCP6Raddr = 20
	illumosTCP6Rport = 36
	illumosTCP6State = 44
	illumosTCP6PID   = 84

	illumosUDP4Size  = 36
	illumosUDP4Laddr = 0
	illumosUDP4Lport = 4
	illumosUDP4PID   = 24

	illumosUDP6Size  = 64
	illumosUDP6Laddr = 0
	illumosUDP6Lport = 16
	illumosUDP6PID   = 52

	// illumosMaxPID is MAX_MAXPID of sys/param.h. Sometimes the first UDP record is of an
	// impossible process, and has an address of no interface; psutil leaves it out too.
	illumosMaxPID = 999_999
)

// The tables of illumos, by level and name in struct opthdr.
const (
	IllumosTCP4 = "mib2.tcp"
	IllumosTCP6 = "mib2.tcp6"
	IllumosUDP4 = "mib2.udp"
	IllumosUDP6 = "mib2.udp6"
)

// IllumosTable returns the name of the table that a struct opthdr stands before (MIB2_TCP,
// MIB2_TCP_CONN and so on); "" if it has no sockets.
func IllumosTable(level, name uint32) string {
	switch [2]uint32{level, name} {
	case [2]uint32{262, 13}:
		return IllumosTCP4
	case [2]uint32{270, 14}:
		return IllumosTCP6
	case [2]uint32{263, 5}:
		return IllumosUDP4
	case [2]uint32{271, 6}:
		return IllumosUDP6
	}
	return ""
}

// illumosStates are the MIB2_TCP_ states.
var illumosStates = states{
	1:  conn.StatusClose,
	2:  conn.StatusListen,
	3:  conn.StatusSynSent,
	4:  conn.StatusSynRecv,
	5:  conn.StatusEstablished,
	6:  conn.StatusFinWait1,
	7:  conn.StatusFinWait2,
	8:  conn.StatusCloseWait,
	9:  conn.StatusLastAck,
	10: conn.StatusClosing,
	11: conn.StatusTimeWait,
	12: conn.StatusDeleteTCB,
}

// Ports are numbers in host byte order here.
var illumosTables = map[string]walker{
	IllumosTCP4: fixed("illumos "+IllumosTCP4, illumosTCP4Size, func(b []byte, r *record, check *stateCheck) {
		r.setCreated(conn.Inet, conn.Stream, u32(b[illumosTCP4PID:]))
		r.row.Laddr = laddr4(b[illumosTCP4Laddr:][:4], u16(b[illumosTCP4Lport:]))
		r.row.Raddr = raddr4(b[illumosTCP4Raddr:][:4], u16(b[illumosTCP4Rport:]))
		r.setState(illumosStates, u32(b[illumosTCP4State:]), check)
	}),
	IllumosTCP6: fixed("illumos "+IllumosTCP6, illumosTCP6Size, func(b []byte, r *record, check *stateCheck) {
		r.setCreated(conn.Inet6, conn.Stream, u32(b[illumosTCP6PID:]))
		r.row.Laddr = laddr6(b[illumosTCP6Laddr:][:16], u16(b[illumosTCP6Lport:]))
		r.row.Raddr = raddr6(b[illumosTCP6Raddr:][:16], u16(b[illumosTCP6Rport:]))
		r.setState(illumosStates, u32(b[illumosTCP6State:]), check)
	}),
	// psutil shows no remote address of UDP sockets.
	IllumosUDP4: fixed("illumos "+IllumosUDP4, illumosUDP4Size, func(b []byte, r *record, _ *stateCheck) {
		r.setCreated(conn.Inet, conn.Datagram, u32(b[illumosUDP4PID:]))
		r.row.Laddr = laddr4(b[illumosUDP4Laddr:][:4], u16(b[illumosUDP4Lport:]))
	}),
	IllumosUDP6: fixed("illumos "+IllumosUDP6, illumosUDP6Size, func(b []byte, r *record, _ *stateCheck) {
		r.setCreated(conn.Inet6, conn.Datagram, u32(b[illumosUDP6PID:]))
		r.row.Laddr = laddr6(b[illumosUDP6Laddr:][:16], u16(b[illumosUDP6Lport:]))
	}),
}

// setCreated makes r a row of the process that created the socket, which is all that
// illumos tells; 0 is the kernel.
func (r *record) setCreated(family conn.Family, typ conn.Type, pid uint32) {
	r.isRow = pid <= illumosMaxPID
	r.row.Family, r.row.Type = family, typ
	if r.isRow {
		r.row.PID = int32(pid)
	}
}

// Sizes of the headers of messages, sys/tihdr.h and sys/socket.h.
const (
	IllumosOptmgmtSize = 16 // struct T_optmgmt_req and T_optmgmt_ack
	IllumosOpthdrSize  = 12 // struct opthdr
)
