package fallback

import (
	"context"

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

// processOf returns nil: nothing is known but the number.
func processOf(int32) *conn.Process { return nil }
