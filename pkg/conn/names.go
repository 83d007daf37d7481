package conn

import (
	"fmt"
	"strings"
	"syscall"
)

// A Family is an address family, with the number that the operating system gives
// it (AF_INET6 is 10 on Linux, 23 on Windows, 30 on macOS).
type Family uint16

// The families of sockets that are tracked. The zero Family is unknown.
const (
	Unix  Family = syscall.AF_UNIX
	Inet  Family = syscall.AF_INET
	Inet6 Family = syscall.AF_INET6
)

// String returns AF_UNIX, AF_INET or AF_INET6.
func (f Family) String() string {
	switch f {
	case Unix:
		return "AF_UNIX"
	case Inet:
		return "AF_INET"
	case Inet6:
		return "AF_INET6"
	}
	return fmt.Sprintf("AF_%d", uint16(f))
}

// MarshalText returns [Family.String].
func (f Family) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// A Type is a socket type, with the number that every system conntrace runs on
// gives it. The zero Type is unknown.
type Type uint8

// The types of sockets that are tracked.
const (
	Stream    Type = 1
	Datagram  Type = 2
	SeqPacket Type = 5
)

// String returns SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
func (t Type) String() string {
	switch t {
	case Stream:
		return "SOCK_STREAM"
	case Datagram:
		return "SOCK_DGRAM"
	case SeqPacket:
		return "SOCK_SEQPACKET"
	}
	return fmt.Sprintf("SOCK_%d", uint8(t))
}

// MarshalText returns [Type.String].
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// A Status is the state of a TCP socket. The zero value, [StatusNone], is that of
// sockets that have no state.
type Status uint8

// The TCP states; the numbers of the first eleven are the kernel's (enum in
// include/net/tcp_states.h).
const (
	StatusNone Status = iota
	StatusEstablished
	StatusSynSent
	StatusSynRecv
	StatusFinWait1
	StatusFinWait2
	StatusTimeWait
	StatusClose
	StatusCloseWait
	StatusLastAck
	StatusListen
	StatusClosing
	StatusDeleteTCB // Windows only
	StatusIdle      // illumos only
	StatusBound     // illumos only
)

var statusNames = [...]string{
	"NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
	"CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "DELETE_TCB", "IDLE", "BOUND",
}

// String returns psutil's spelling: ESTABLISHED, SYN_SENT and so on.
func (s Status) String() string { return name(statusNames[:], s) }

// MarshalText returns [Status.String].
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is [ParseStatus].
func (s *Status) UnmarshalText(text []byte) (err error) {
	*s, err = ParseStatus(string(text))
	return err
}

// ParseStatus returns the status with psutil's spelling s, in any case. The
// error of an unknown one lists the valid ones.
func ParseStatus(s string) (Status, error) { return parse[Status]("status", statusNames[:], 0, s) }

// A Direction says which end of a connection opened it. The zero Direction is
// unknown.
type Direction uint8

// The directions of a connection.
const (
	Outbound Direction = 1 + iota // opened here, by connect(2)
	Inbound                       // opened by the peer, to a listener here
)

var directionNames = [...]string{"unknown", "outbound", "inbound"}

// String returns outbound, inbound or unknown.
func (d Direction) String() string { return name(directionNames[:], d) }

// MarshalText returns [Direction.String].
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// ParseDirection returns the direction named s, in any case.
func ParseDirection(s string) (Direction, error) {
	return parse[Direction]("direction", directionNames[:], 1, s)
}

// A Reason is the way a connection ended. The zero Reason is unknown.
type Reason uint8

// The ways a connection ends.
const (
	ReasonFin     Reason = 1 + iota // both sides were shut down in order
	ReasonReset                     // a RST was received or sent
	ReasonTimeout                   // the peer no longer answered (ETIMEDOUT)
	ReasonRefused                   // nobody listened (ECONNREFUSED)
)

var reasonNames = [...]string{"unknown", "fin", "reset", "timeout", "refused"}

// String returns fin, reset, timeout, refused or unknown.
func (r Reason) String() string { return name(reasonNames[:], r) }

// MarshalText returns [Reason.String].
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// A Side is an end of a connection. The zero Side is unknown.
type Side uint8

// The ends of a connection.
const (
	Local  Side = 1 + iota // this socket
	Remote                 // its peer
)

var sideNames = [...]string{"unknown", "local", "remote"}

// String returns local, remote or unknown.
func (s Side) String() string { return name(sideNames[:], s) }

// MarshalText returns [Side.String].
func (s Side) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// name returns the name of v, or its number where it has none.
func name[T ~uint8](names []string, v T) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("%d", uint8(v))
}

// parse returns the value among names whose name is s, in any case. Values below
// first cannot be asked for.
func parse[T ~uint8](what string, names []string, first int, s string) (T, error) {
	for i, n := range names[first:] {
		if strings.EqualFold(n, s) {
			return T(first + i), nil
		}
	}
	return 0, fmt.Errorf("unknown %s %q; valid ones are %s", what, s, strings.Join(names[first:], ", "))
}
