package rawtable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/conntrace/conntrace/pkg/conn"
)

// The tables of Windows, by their structs.
const (
	WindowsTCP4 = "MIB_TCPTABLE_OWNER_PID"
	WindowsTCP6 = "MIB_TCP6TABLE_OWNER_PID"
	WindowsUDP4 = "MIB_UDPTABLE_OWNER_PID"
	WindowsUDP6 = "MIB_UDP6TABLE_OWNER_PID"
)

var windowsByName = map[string]*windowsTable{
	WindowsTCP4: &windowsTCP4, WindowsTCP6: &windowsTCP6, WindowsUDP4: &windowsUDP4, WindowsUDP6: &windowsUDP6,
}

// DecodeWindows decodes tables of Windows. Warnings are [*StateError].
func DecodeWindows(t Tables) (rows []conn.Conn, warnings []error, err error) {
	for _, name := range slices.Sorted(maps.Keys(t)) {
		table := windowsByName[name]
		if table == nil {
			return nil, nil, fmt.Errorf("windows has no table %q", name)
		}
		if rows, err = table.append(rows, t[name]); errors.As(err, new(*StateError)) {
			warnings = append(warnings, err)
		} else if err != nil {
			return nil, nil, err
		}
	}
	return rows, warnings, nil
}

// FilterWindows returns tables of Windows without the rows of other processes than
// pid, all if that is 0, and without what stands behind their rows.
func FilterWindows(t Tables, pid int32) (Tables, error) {
	filtered := make(Tables)
	for name, raw := range t {
		table := windowsByName[name]
		if table == nil {
			return nil, fmt.Errorf("windows has no table %q", name)
		}
		if _, err := table.append(nil, raw); err != nil && !errors.As(err, new(*StateError)) {
			return nil, err
		}
		count, kept := binary.LittleEndian.Uint32(raw), uint32(0)
		rows := make([]byte, windowsRows)
		for i := range int(count) {
			row := raw[windowsRows+i*table.size:][:table.size]
			if pid == 0 || windowsPID(row[table.pid:]) == pid {
				rows = append(rows, row...)
				kept++
			}
		}
		binary.LittleEndian.PutUint32(rows, kept)
		filtered[name] = rows
	}
	return filtered, nil
}
