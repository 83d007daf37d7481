package fallback

import (
	"context"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/pkg/conn"
)

const nativeKinds = conn.KindAll

var freebsdTables = []sysctlTable{
	{kinds: conn.KindTCP, name: rawtable.FreeBSDTCP},
	{kinds: conn.KindUDP, name: rawtable.FreeBSDUDP},
	{kinds: conn.KindUnix, name: rawtable.FreeBSDUnixStream},
	{kinds: conn.KindUnix, name: rawtable.FreeBSDUnixDatagram},
	{kinds: conn.KindUnix, name: rawtable.FreeBSDUnixSeqPacket},
}

// readNative reads the tables of the sockets, and of all descriptors to join them with.
// Whose processes may not be seen (security.bsd.see_other_uids, a jail) has no sockets
// in them either.
func readNative(ctx context.Context, q Query) (tables rawtable.Tables, hidden int, err error) {
	tables = make(rawtable.Tables)
	if err := readSysctls(ctx, freebsdTables, q.Kind, tables); err != nil {
		return nil, 0, err
	}
	tables[rawtable.FreeBSDFiles], err = readSysctl(ctx, rawtable.FreeBSDFiles)
	return tables, 0, err
}

// processOf asks for a process; its name, user and time of start are known unless it
// may not be seen.
func processOf(pid int32) *conn.Process {
	info, err := unix.SysctlRaw("kern.proc.pid", int(pid))
	if err != nil {
		return nil
	}
	p, err := rawtable.FreeBSDProcess(info, runtime.GOARCH)
	if err != nil {
		return nil
	}
	return p
}
