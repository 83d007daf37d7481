package rawtable

import (
	"bytes"

	"github.com/conntrace/conntrace/pkg/conn"
)

// The layout of struct kinfo_file in sys/sysctl.h of OpenBSD, which kern.file gives
// for each descriptor. testdata/layout/openbsd.c has it.
const (
	openbsdInet6 = 24

	// OpenBSDFileSize is how much of each record must be asked for: the kernel gives as
	// much, and refuses what is more than it has. It ends behind t_state.
	OpenBSDFileSize = 600

	openbsdFileType     = 16
	openbsdFileData     = 64
	openbsdFileSoType   = 272
	openbsdFileFamily   = 292
	openbsdFileLport    = 304
	openbsdFileLaddr    = 308
	openbsdFileFport    = 324
	openbsdFileFaddr    = 328
	openbsdFilePID      = 376
	openbsdFileFD       = 380
	openbsdFileComm     = 400
	openbsdFilePath     = 488
	openbsdFilePath386  = 484
	openbsdFileState    = 596
	openbsdFileState386 = 592

	openbsdCommSize = 24  // KI_MAXCOMLEN
	openbsdPathSize = 104 // KI_UNPPATHLEN
)

// OpenBSDFiles is the table of OpenBSD, by the name of its sysctl, asked for by
// process (KERN_FILE_BYPID).
const OpenBSDFiles = "kern.file"

func openbsdTables(goarch string) map[string]walker {
	path, state := openbsdFilePath, openbsdFileState
	if goarch == "386" {
		path, state = openbsdFilePath386, openbsdFileState386
	}
	decode := func(b []byte, r *record, check *stateCheck) {
		r.row.PID, r.row.FD = id(b[openbsdFilePID:]), id(b[openbsdFileFD:])
		if u32(b[openbsdFileType:]) != fileIsSocket || r.row.FD < 0 {
			return
		}
		// The kernel shows addresses to root only. A descriptor is known without.
		r.held = true
		r.handle = u64(b[openbsdFileData:])
		r.row.Type = conn.Type(u32(b[openbsdFileSoType:]))
		// The ports are in network byte order, in 32 bits.
		lport, fport := port(b[openbsdFileLport:]), port(b[openbsdFileFport:])
		switch u32(b[openbsdFileFamily:]) {
		case unixFamily:
			r.isRow = true
			r.row.Family = conn.Unix
			r.row.Laddr, r.row.Raddr = conn.AddrSunPath(b[path:][:openbsdPathSize]), conn.AddrUnix("")
		case inetFamily:
			r.isRow = true
			r.row.Family = conn.Inet
			r.row.Laddr, r.row.Raddr = laddr4(b[openbsdFileLaddr:][:4], lport), raddr4(b[openbsdFileFaddr:][:4], fport)
		case openbsdInet6:
			r.isRow = true
			r.row.Family = conn.Inet6
			r.row.Laddr, r.row.Raddr = laddr6(b[openbsdFileLaddr:][:16], lport), raddr6(b[openbsdFileFaddr:][:16], fport)
		}
		if r.isRow {
			comm, _, _ := bytes.Cut(b[openbsdFileComm:][:openbsdCommSize], []byte{0})
			r.row.Process = &conn.Process{PID: r.row.PID, Comm: string(comm)}
		}
		if r.isRow && r.row.Family != conn.Unix && r.row.Type == conn.Stream {
			r.setState(tcpStates, u32(b[state:]), check)
		}
	}
	return map[string]walker{OpenBSDFiles: fixed("openbsd "+OpenBSDFiles, OpenBSDFileSize, decode)}
}
