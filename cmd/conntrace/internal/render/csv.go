package render

import (
	"bytes"
	"strconv"

	"github.com/conntrace/conntrace/pkg/conn"
)

// AppendCSVHeader appends the names of the columns: the keys of the JSON form,
// with each address in two columns.
func AppendCSVHeader(dst []byte) []byte {
	return append(dst, "fd,family,type,laddr,lport,raddr,rport,status,pid,proto,inode,cookie,uid,netns,comm,exe,start,cgroup\n"...)
}

// AppendConnCSV appends c as a line. What is not known is empty. Control
// characters in names are escaped as in the table, so that a row is one line.
func AppendConnCSV(dst []byte, c *conn.Conn) []byte {
	p := process(c)
	uid, hasUID := user(c)

	dst = strconv.AppendInt(dst, int64(c.FD), 10)
	dst = appendCell(dst, uint64(c.Family), true)
	dst = appendCell(dst, uint64(c.Type), true)
	dst = appendAddrCells(dst, c.Laddr)
	dst = appendAddrCells(dst, c.Raddr)
	dst = append(dst, ',')
	dst = append(dst, c.Status.String()...)
	dst = appendCell(dst, uint64(c.PID), c.PID != 0)
	dst = append(dst, ',')
	dst = append(dst, proto(c)...)
	dst = appendCell(dst, c.Inode, c.Known.Has(conn.KnownInode))
	dst = appendCell(dst, c.Cookie, c.Known.Has(conn.KnownCookie))
	dst = appendCell(dst, uint64(uid), hasUID)
	dst = appendCell(dst, uint64(c.NetNS), c.Known.Has(conn.KnownNetNS))
	dst = appendTextCell(dst, p.Comm)
	dst = appendTextCell(dst, p.Executable)
	dst = append(dst, ',')
	if !p.Start.IsZero() {
		dst = appendTime(dst, p.Start)
	}
	dst = appendCell(dst, p.Cgroup, p.Cgroup != 0)
	return append(dst, '\n')
}

func appendCell(dst []byte, n uint64, known bool) []byte {
	dst = append(dst, ',')
	if !known {
		return dst
	}
	return strconv.AppendUint(dst, n, 10)
}

func appendAddrCells(dst []byte, a conn.Addr) []byte {
	if a.IsUnix() {
		return append(appendTextCell(dst, a.Path()), ',')
	}
	dst = append(dst, ',')
	if a.IsValid() {
		dst = a.IP().AppendTo(dst)
	}
	return appendCell(dst, uint64(a.Port()), a.IsValid())
}

// appendTextCell quotes what RFC 4180 wants quoted.
func appendTextCell(dst []byte, s string) []byte {
	dst = append(dst, ',')
	start := len(dst)
	dst = appendVisible(dst, s)
	if !bytes.ContainsAny(dst[start:], `",`) {
		return dst
	}
	text := bytes.ReplaceAll(dst[start:], []byte(`"`), []byte(`""`))
	dst = append(dst[:start], '"')
	dst = append(dst, text...)
	return append(dst, '"')
}
