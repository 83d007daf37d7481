package rawtable

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A windowsTable says how a table of iphlpapi.dll is laid out: a count of rows, and
// the rows. Their members are 32-bit numbers and arrays of bytes, so that every
// architecture of Windows, all of them little-endian, has the same layout.
type windowsTable struct {
	name   string
	family conn.Family
	typ    conn.Type

	// The size of a row, and where its members are, in bytes.
	size, laddr, lport, raddr, rport, state, pid int
}

// windowsRows is where the rows begin, behind dwNumEntries.
const windowsRows = 4

var (
	// MIB_TCPTABLE_OWNER_PID and MIB_TCPROW_OWNER_PID of tcpmib.h.
	windowsTCP4 = windowsTable{
		name: "windows tcp4", family: conn.Inet, typ: conn.Stream,
		size: 24, state: 0, laddr: 4, lport: 8, raddr: 12, rport: 16, pid: 20,
	}
	// MIB_TCP6TABLE_OWNER_PID and MIB_TCP6ROW_OWNER_PID of tcpmib.h. Behind each address
	// stands its scope, which a conn.Addr does not have.
	windowsTCP6 = windowsTable{
		name: "windows tcp6", family: conn.Inet6, typ: conn.Stream,
		size: 56, laddr: 0, lport: 20, raddr: 24, rport: 44, state: 48, pid: 52,
	}
	// MIB_UDPTABLE_OWNER_PID and MIB_UDPROW_OWNER_PID of udpmib.h. No UDP table of
	// Windows has the remote address.
	windowsUDP4 = windowsTable{
		name: "windows udp4", family: conn.Inet, typ: conn.Datagram,
		size: 12, laddr: 0, lport: 4, pid: 8,
	}
	// MIB_UDP6TABLE_OWNER_PID and MIB_UDP6ROW_OWNER_PID of udpmib.h.
	windowsUDP6 = windowsTable{
		name: "windows udp6", family: conn.Inet6, typ: conn.Datagram,
		size: 28, laddr: 0, lport: 20, pid: 24,
	}
)

// windowsStates are the states of MIB_TCP_STATE in tcpmib.h.
var windowsStates = states{
	1:  conn.StatusClose,
	2:  conn.StatusListen,
	3:  conn.StatusSynSent,
	4:  conn.StatusSynRecv,
	5:  conn.StatusEstablished,
	6:  conn.StatusFinWait1,
	7:  conn.StatusFinWait2,
	8:  conn.StatusCloseWait,
	9:  conn.StatusClosing,
	10: conn.StatusLastAck,
	11: conn.StatusTimeWait,
	12: conn.StatusDeleteTCB,
}

// AppendWindowsTCP4 decodes the table that GetExtendedTcpTable gives for AF_INET and
// TCP_TABLE_OWNER_PID_ALL. What stands behind its last row does not matter.
func AppendWindowsTCP4(dst []conn.Conn, raw []byte) ([]conn.Conn, error) {
	return windowsTCP4.append(dst, raw)
}

// AppendWindowsTCP6 is [AppendWindowsTCP4] for AF_INET6.
func AppendWindowsTCP6(dst []conn.Conn, raw []byte) ([]conn.Conn, error) {
	return windowsTCP6.append(dst, raw)
}

// AppendWindowsUDP4 decodes the table that GetExtendedUdpTable gives for AF_INET and
// UDP_TABLE_OWNER_PID. What stands behind its last row does not matter.
func AppendWindowsUDP4(dst []conn.Conn, raw []byte) ([]conn.Conn, error) {
	return windowsUDP4.append(dst, raw)
}

// AppendWindowsUDP6 is [AppendWindowsUDP4] for AF_INET6.
func AppendWindowsUDP6(dst []conn.Conn, raw []byte) ([]conn.Conn, error) {
	return windowsUDP6.append(dst, raw)
}

func (t *windowsTable) append(dst []conn.Conn, raw []byte) ([]conn.Conn, error) {
	if len(raw) < windowsRows {
		return dst, &SizeError{Table: t.name, Got: len(raw), Want: windowsRows}
	}
	count := uint64(binary.LittleEndian.Uint32(raw))
	if want := windowsRows + count*uint64(t.size); uint64(len(raw)) < want {
		return dst, &SizeError{Table: t.name, Got: len(raw), Want: int(min(want, math.MaxInt))}
	}
	dst = slices.Grow(dst, int(count))
	var check stateCheck
	for i := range int(count) {
		row := raw[windowsRows+i*t.size:][:t.size]
		c := conn.Conn{FD: -1, Family: t.family, Type: t.typ, Laddr: t.addr(row, t.laddr, t.lport), PID: windowsPID(row[t.pid:])}
		if t.typ == conn.Stream {
			state := binary.LittleEndian.Uint32(row[t.state:])
			var ok bool
			if c.Status, ok = windowsStates.lookup(state); !ok {
				check.leaveOut(state)
				continue
			}
			// The remote address of a listener means nothing: some versions leave there what
			// was in memory.
			if c.Status != conn.StatusListen {
				c.Raddr = t.addr(row, t.raddr, t.rport)
			}
		}
		dst = append(dst, c)
	}
	return dst, check.result(t.name)
}

// addr returns the address at the offsets ip and port of row. Like psutil on Windows,
// it takes one that is all zero for none. A port is in network byte order in the
// lower half of its number; the upper half may hold anything.
func (t *windowsTable) addr(row []byte, ip, port int) conn.Addr {
	p := binary.BigEndian.Uint16(row[port:])
	if t.family == conn.Inet6 {
		if a := [16]byte(row[ip:]); a != ([16]byte{}) || p != 0 {
			return conn.AddrIPv6Exact(a, p)
		}
	} else if a := [4]byte(row[ip:]); a != ([4]byte{}) || p != 0 {
		return conn.AddrIPv4Exact(a, p)
	}
	return conn.Addr{}
}

// windowsPID returns a process ID; 0, which is the idle process, has the sockets that
// belong to none any more. No process has a number that an int32 cannot hold.
func windowsPID(b []byte) int32 {
	pid := binary.LittleEndian.Uint32(b)
	if pid > math.MaxInt32 {
		return 0
	}
	return int32(pid)
}
