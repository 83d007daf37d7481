package fallback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/pkg/conn"
)

// There are no unix sockets in the MIB.
const nativeKinds = conn.KindInet

// From sys/tihdr.h, sys/tiuser.h and inet/mib2.h.
const (
	tSVR4OptmgmtReq = 9
	tErrorAck       = 18
	tOptmgmtAck     = 22
	tSuccess        = 0x020
	tCurrent        = 0x080
	mib2IP          = 260

	// mibTimeout is how long the streams may take for the next part of an answer, in ms.
	// They have it at once.
	mibTimeout = 10_000
)

// readNative asks the streams modules of TCP and UDP for their MIB-2 tables, as netstat
// does: a message of a header and a table each, and a header of zeros in the end.
func readNative(ctx context.Context, q Query) (tables rawtable.Tables, hidden int, err error) {
	fd, err := unix.Open("/dev/arp", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("/dev/arp: %w", err)
	}
	defer unix.Close(fd)
	for _, module := range []string{"tcp", "udp"} {
		if err := unix.IoctlSetString(fd, unix.I_PUSH, module); err != nil {
			return nil, 0, fmt.Errorf("/dev/arp: push %s: %w", module, err)
		}
	}
	if err := unix.Putmsg(fd, mibRequest(), nil, 0); err != nil {
		return nil, 0, fmt.Errorf("/dev/arp: putmsg: %w", err)
	}
	tables = make(rawtable.Tables)
	for {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		name, table, err := nextMIB(fd)
		if err != nil {
			return nil, 0, fmt.Errorf("/dev/arp: %w", err)
		}
		if table == nil {
			return tables, 0, nil
		}
		if name != "" {
			tables[name] = append(tables[name], table...)
		}
	}
}

// mibRequest returns a struct T_optmgmt_req and a struct opthdr.
func mibRequest() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, tSVR4OptmgmtReq)
	b = le.AppendUint32(b, rawtable.IllumosOpthdrSize)  // OPT_length
	b = le.AppendUint32(b, rawtable.IllumosOptmgmtSize) // OPT_offset
	b = le.AppendUint32(b, tCurrent)                    // MGMT_flags
	b = le.AppendUint32(b, mib2IP)                      // level
	b = le.AppendUint32(b, 0)                           // name
	return le.AppendUint32(b, 1)                        // len: with 0, records have no process
}

// nextMIB returns the next table of the answer, and its name if it has sockets. At the
// end the table is nil.
func nextMIB(fd int) (name string, table []byte, err error) {
	control := make([]byte, 512)
	if err := waitMIB(fd); err != nil {
		return "", nil, err
	}
	control, _, _, err = unix.Getmsg(fd, control, nil)
	if err != nil {
		return "", nil, fmt.Errorf("getmsg: %w", err)
	}
	if len(control) < rawtable.IllumosOptmgmtSize {
		return "", nil, fmt.Errorf("answer of %d bytes: %w", len(control), errShort)
	}
	le := binary.LittleEndian
	switch primitive := le.Uint32(control); {
	case primitive == tErrorAck:
		return "", nil, fmt.Errorf("T_ERROR_ACK: TPI error %d, %w", le.Uint32(control[8:]), unix.Errno(le.Uint32(control[12:])))
	case primitive != tOptmgmtAck || le.Uint32(control[12:]) != tSuccess:
		return "", nil, fmt.Errorf("unexpected answer: TPI primitive %d, flags %#x", primitive, le.Uint32(control[12:]))
	}
	offset := uint64(le.Uint32(control[8:]))
	if offset+rawtable.IllumosOpthdrSize > uint64(len(control)) {
		return "", nil, fmt.Errorf("header at %d of %d bytes: %w", offset, len(control), errShort)
	}
	header := control[offset:]
	level, id, size := le.Uint32(header), le.Uint32(header[4:]), le.Uint32(header[8:])
	if level == 0 && id == 0 {
		return "", nil, nil
	}
	// The table stands behind its header even if it is empty.
	if err := waitMIB(fd); err != nil {
		return "", nil, err
	}
	_, table, _, err = unix.Getmsg(fd, nil, make([]byte, max(1, size)))
	if err != nil {
		return "", nil, fmt.Errorf("getmsg: table %d/%d: %w", level, id, err)
	}
	if uint64(len(table)) != uint64(size) {
		return "", nil, fmt.Errorf("table %d/%d of %d bytes instead of %d: %w", level, id, len(table), size, errShort)
	}
	return rawtable.IllumosTable(level, id), table, nil
}

// waitMIB waits until there is something to read.
func waitMIB(fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLPRI}}, mibTimeout)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("poll: %w", err)
		case n == 0:
			return errors.New("the streams modules do not answer")
		default:
			return nil
		}
	}
}

// processOf returns nil: nothing is known but the number.
func processOf(int32) *conn.Process { return nil }
