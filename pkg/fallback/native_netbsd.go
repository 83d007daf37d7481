package fallback

import (
	"context"
	"math"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/pkg/conn"
)

const nativeKinds = conn.KindAll

var netbsdTables = []sysctlTable{
	{kinds: conn.KindTCP4, name: rawtable.NetBSDTCP4},
	{kinds: conn.KindTCP6, name: rawtable.NetBSDTCP6, optional: true},
	{kinds: conn.KindUDP4, name: rawtable.NetBSDUDP4},
	{kinds: conn.KindUDP6, name: rawtable.NetBSDUDP6, optional: true},
	{kinds: conn.KindUnix, name: rawtable.NetBSDUnixStream},
	{kinds: conn.KindUnix, name: rawtable.NetBSDUnixDatagram},
	{kinds: conn.KindUnix, name: rawtable.NetBSDUnixSeqPacket},
}

// readNative reads the tables of the sockets, and the descriptors of all processes, or
// of one, to join them with. Asked by process, a descriptor that is shared comes once
// for each; asked by file (KERN_FILE_BYFILE), as psutil does, once.
func readNative(ctx context.Context, q Query) (tables rawtable.Tables, hidden int, err error) {
	const (
		allSockets = 0 // PCB_ALL
		byPID      = 2 // KERN_FILE_BYPID; process 0 means all
	)
	tables = make(rawtable.Tables)
	if err := readSysctls(ctx, netbsdTables, q.Kind, tables, allSockets, 0, rawtable.NetBSDPcbSize, math.MaxInt32); err != nil {
		return nil, 0, err
	}
	tables[rawtable.NetBSDFiles], err = readSysctl(ctx, rawtable.NetBSDFiles, byPID, int(q.PID), rawtable.NetBSDFileSize, math.MaxInt32)
	return tables, 0, err
}

// processOf returns nil: nothing is known but the number.
func processOf(int32) *conn.Process { return nil }
