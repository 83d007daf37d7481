package fallback

import (
	"bytes"
	"context"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/pkg/conn"
)

// rawTables reads every table, and leaves in them the rows of the process pid, unless
// that is 0.
func rawTables(ctx context.Context, pid int32) (rawtable.Tables, error) {
	if _, err := openNative(); err != nil {
		return nil, err
	}
	names := map[conn.Kind]string{
		conn.KindTCP4: rawtable.WindowsTCP4, conn.KindTCP6: rawtable.WindowsTCP6,
		conn.KindUDP4: rawtable.WindowsUDP4, conn.KindUDP6: rawtable.WindowsUDP6,
	}
	tables := make(rawtable.Tables)
	for i := range windowsTables {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		t := &windowsTables[i]
		var buf []byte
		if err := readWindowsTable(t.proc, t.family, t.class, &buf); err != nil {
			return nil, err
		}
		tables[names[t.kind]] = bytes.Clone(buf)
	}
	return rawtable.FilterWindows(tables, pid)
}
