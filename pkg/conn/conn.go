package conn

import (
	"time"
)

// A Conn is one row of net_connections(): a socket and who holds it.
//
// The first seven fields are psutil's. What follows is known only to some
// sources; Known says which of those fields hold a value, because an unknown
// one is not the same as zero.
//
// Values are the caller's to keep. Process and Holders are shared and must not
// be modified.
type Conn struct {
	FD     int32  // descriptor in the process PID; -1: unknown
	Family Family // AF_INET, AF_INET6, AF_UNIX
	Type   Type   // SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
	Status Status // TCP state; StatusNone for UDP and unix sockets
	Laddr  Addr   // local address; the zero Addr if there is none
	Raddr  Addr   // remote address; the zero Addr if there is none
	PID    int32  // process that holds the socket; 0: unknown

	Known  Known  // which of UID, NetNS, Inode, Cookie and Holders are known
	UID    uint32 // owner of the socket's inode (SOCK_INODE(sk)->i_uid)
	NetNS  uint32 // inode number of the network namespace, as in /proc/PID/ns/net
	Inode  uint64 // inode number on sockfs; known to be 0 while nobody has accepted it
	Cookie uint64 // sock_diag's idiag_cookie: unique for the life of the machine, except under MPTCP

	Process *Process // the process PID, beyond its number; nil: unknown
	// Holders are the descriptors of the socket in every process that the caller may
	// look into, ascending by (PID, FD).
	Holders []Holder
}

// Known is a set of fields of a [Conn] that hold a value.
type Known uint8

// The fields that a source may or may not know.
const (
	KnownUID Known = 1 << iota
	KnownNetNS
	KnownInode
	KnownCookie
	KnownHolders
)

// Has reports whether all fields of f are known.
func (k Known) Has(f Known) bool { return k&f == f }

// A Holder is one descriptor through which a process holds a socket.
type Holder struct {
	PID int32
	FD  int32
}

// A Process is what was seen of a process at one moment of its life. A PID
// alone is no identity, as the kernel uses it again: (PID, Start) is.
type Process struct {
	PID        int32
	UID        uint32    // real user ID, if HasUID
	HasUID     bool      //
	Start      time.Time // when it was started, on Linux to the clock tick (10 ms); zero: unknown
	Comm       string    // command name as the kernel keeps it, on Linux at most 15 bytes, on Windows the file name of the program; "": unknown
	Executable string    // path of its executable (on Linux /proc/PID/exe); "": unknown
	Cgroup     uint64    // cgroup v2 ID, the inode number of its directory; 0: unknown
}
