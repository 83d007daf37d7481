package fallback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/pkg/conn"
)

// rawTables reads every table by sock_diag and from procfs, and the descriptors of the
// process pid, or of all. Without sock_diag the others are there.
func rawTables(ctx context.Context, pid int32) (rawtable.Tables, error) {
	var holdings []Holding
	var err error
	if pid != 0 {
		holdings, err = appendHoldersOf(nil, "/proc", pid)
	} else {
		holdings, _, err = procHolders{"/proc"}.Append(ctx, nil)
	}
	if err != nil {
		return nil, err
	}
	all := rawtable.Tables{recordedFDs: nil}
	own := make(map[uint64]bool)
	for _, h := range holdings {
		all[recordedFDs] = appendHolding(all[recordedFDs], h)
		own[h.Inode] = true
	}
	keep := func(inode uint64) bool { return pid == 0 || own[inode] }

	for i := range tables {
		t := &tables[i]
		text, err := os.ReadFile("/proc/thread-self/net/" + t.file)
		if errors.Is(err, fs.ErrNotExist) && t.optional() {
			continue
		}
		if err != nil {
			return nil, err
		}
		all[recordedProc+t.file] = filterText(text, t, keep)
	}
	source, err := Netlink("/proc")
	if err != nil {
		return all, nil // as Snapshot would say
	}
	diag := source.(*linuxSource).tables.(sockDiag)
	for i := range tables {
		t := &tables[i]
		raw, err := diag.readRaw(ctx, t)
		if errors.Is(err, unix.ENOENT) && t.optional() {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sock_diag: %s: %w", t.file, err)
		}
		if all[recordedDiag+t.file], err = filterMessages(raw, t, keep); err != nil {
			return nil, fmt.Errorf("sock_diag: %s: %w", t.file, err)
		}
	}
	return all, nil
}

// readRaw dumps t and returns the messages as received.
func (d sockDiag) readRaw(ctx context.Context, t *table) (raw []byte, err error) {
	c, err := d.open()
	if err != nil {
		return nil, err
	}
	defer c.close()
	states := uint32(allStates)
	if t.typ == conn.Stream {
		states = tcpStates
	}
	req := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddRawData(diagRequest(t, states))
	if err := unix.Sendto(c.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	answer := dump{seq: req.Seq, record: func([]byte) {}}
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := c.receive()
		if err != nil {
			return nil, err
		}
		raw = append(raw, b...)
		if done, err = answer.add(b); err != nil {
			return nil, err
		}
	}
	return raw, nil
}

// filterMessages returns the messages that are about sockets which keep keeps.
func filterMessages(raw []byte, t *table, keep func(inode uint64) bool) (kept []byte, err error) {
	for len(raw) > 0 {
		m, rest, err := nextMessage(raw)
		if err != nil {
			return nil, err
		}
		whole := raw[:len(raw)-len(rest)]
		raw = rest
		if m.kind != sockDiagByFamily {
			continue
		}
		c := conn.Conn{Type: t.typ}
		if t.family == conn.Unix {
			_, err = decodeUnixDiag(m.body, &c)
		} else {
			err = decodeInetDiag(m.body, &c)
		}
		if err != nil {
			return nil, err
		}
		if keep(c.Inode) {
			kept = append(kept, whole...)
		}
	}
	return kept, nil
}

// filterText returns the heading of a table of /proc/net and the lines that are about
// sockets which keep keeps. What follows the line of a unix socket and is none itself
// belongs to that socket's name.
func filterText(text []byte, t *table, keep func(inode uint64) bool) (kept []byte) {
	heading, keeping := true, false
	for line := range bytes.Lines(text) {
		if heading {
			heading = false
			kept = append(kept, line...)
			continue
		}
		content := bytes.TrimSuffix(line, []byte("\n"))
		c := conn.Conn{Family: t.family, Type: t.typ}
		if t.family == conn.Unix {
			if socket, _, ok := parseUnixLine(content); ok {
				keeping = keep(socket.Inode)
			}
		} else {
			_, err := parseInetLine(content, &c)
			keeping = err == nil && keep(c.Inode)
		}
		if keeping {
			kept = append(kept, line...)
		}
	}
	return kept
}
