package fallback

import (
	"context"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/pkg/conn"
)

const nativeKinds = conn.KindAll

var darwinTables = []sysctlTable{
	{kinds: conn.KindTCP, name: rawtable.DarwinTCP},
	{kinds: conn.KindUDP, name: rawtable.DarwinUDP},
	{kinds: conn.KindUnix, name: rawtable.DarwinUnixStream, optional: true},
	{kinds: conn.KindUnix, name: rawtable.DarwinUnixDatagram, optional: true},
}

// readNative asks for each socket of each process. Only root may ask for those of other
// users; in the tables of all sockets they are without their owners, which is better
// than nothing.
func readNative(ctx context.Context, q Query) (tables rawtable.Tables, hidden int, err error) {
	pids := []int32{q.PID}
	if q.PID == 0 {
		if pids, err = listPIDs(); err != nil {
			return nil, 0, err
		}
	}
	var held []byte
	var fds []byte // for all processes
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		var denied bool
		if held, fds, denied, err = appendHeld(held, fds, pid); err != nil {
			return nil, 0, err
		}
		if denied && q.PID != 0 {
			return nil, 0, fmt.Errorf("process %d: %w", pid, fs.ErrPermission)
		}
		if denied {
			hidden++
		}
	}
	tables = rawtable.Tables{rawtable.DarwinHeld: held}
	if hidden > 0 {
		err = readSysctls(ctx, darwinTables, q.Kind, tables)
	}
	return tables, hidden, err
}

// appendHeld appends the sockets of a process to the table held. denied reports whether
// the process may not be asked. It uses the memory of fds.
func appendHeld(held, fds []byte, pid int32) (table, memory []byte, denied bool, err error) {
	fds, ok := listFDs(fds, pid)
	if !ok {
		// libproc does not say why. A process that is gone, or has ended and waits for its
		// parent, has no descriptors.
		return held, fds, unix.Kill(int(pid), 0) == unix.EPERM, nil
	}
	sockets, err := rawtable.DarwinSockets(fds)
	if err != nil {
		return nil, nil, false, err
	}
	var info [rawtable.DarwinSocketSize]byte
	for _, fd := range sockets {
		switch n := procPIDFDInfo(pid, fd, procPIDFDSocketInfo, info[:]); {
		case n == len(info):
			held = rawtable.AppendDarwinHeld(held, pid, fd, &info)
		case n > 0:
			return nil, nil, false, &rawtable.SizeError{Table: "darwin socket_fdinfo", Got: n, Want: len(info)}
		}
		// Otherwise the descriptor was closed meanwhile.
	}
	return held, fds, false, nil
}

// listPIDs returns all processes.
func listPIDs() ([]int32, error) {
	const size = 4 // sizeof(int)
	for n := procListPIDs(procAllPIDs, 0, nil); n > 0; {
		buf := make([]byte, n+n/8+64*size)
		n = procListPIDs(procAllPIDs, 0, buf)
		if n <= 0 || n == len(buf) {
			continue // full: there may be more
		}
		var pids []int32
		for b := buf[:n]; len(b) >= size; b = b[size:] {
			if pid := int32(hostEndian.Uint32(b)); pid > 0 { // 0 is the kernel
				pids = append(pids, pid)
			}
		}
		return pids, nil
	}
	return nil, fmt.Errorf("proc_listpids: no answer")
}

// listFDs returns an array of struct proc_fdinfo, in the memory of buf if that will do;
// ok is false if the process cannot be asked.
func listFDs(buf []byte, pid int32) (fds []byte, ok bool) {
	if cap(buf) == 0 {
		buf = make([]byte, 256*rawtable.DarwinFDSize)
	}
	buf = buf[:cap(buf)]
	for {
		n := procPIDInfo(pid, procPIDListFDs, buf)
		if n <= 0 {
			return buf, false
		}
		if n+rawtable.DarwinFDSize <= len(buf) {
			return buf[:n], true
		}
		buf = make([]byte, 2*len(buf)) // full: there may be more
	}
}

func processOf(pid int32) *conn.Process {
	var info [rawtable.DarwinProcSize]byte
	n := procPIDInfo(pid, procPIDTBSDInfo, info[:])
	if n <= 0 {
		return nil
	}
	p, err := rawtable.DarwinProcess(info[:n])
	if err != nil {
		return nil
	}
	return p
}
