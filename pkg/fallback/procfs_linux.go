package fallback

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/conntrace/conntrace/pkg/conn"
)

// Procfs returns a source that reads the socket tables and who holds the sockets
// in the procfs at root. /proc has the view of the caller; any other root, such as
// the host's in a container, that of its process 1.
func Procfs(root string) (Source, error) {
	tables := procTables{dir: root + "/1"}
	if isOwnProc(root) {
		tables.dir = callerDir
	}
	return NewSource("procfs", root, tables, procHolders{root})
}

// procTables reads the text tables in /proc/PID/net.
type procTables struct{ dir string }

func (p procTables) Home() Namespace {
	ns, _ := netnsOf(p.dir) // unknown if the process may not be looked at
	return ns
}

func (procTables) Read(ctx context.Context, ns Namespace, kinds conn.Kind, s *Snapshot) error {
	for i := range tables {
		t := &tables[i]
		if !kinds.Has(t.kind) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err := readProcTable(ns.dir+"/net/"+t.file, t, s)
		if errors.Is(err, fs.ErrNotExist) && t.optional() {
			_, err = os.Stat(ns.dir + "/net") // unless the process is gone
		}
		if err != nil {
			return err
		}
	}
	if now, err := netnsOf(ns.dir); ns.foreign && (err != nil || now.inode != ns.inode) {
		return errMoved
	}
	return nil
}

func readProcTable(name string, t *table, s *Snapshot) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if t.family == conn.Unix {
		return parseUnixTable(f, name, s)
	}
	return parseInetTable(f, name, t.family, t.typ, s)
}
