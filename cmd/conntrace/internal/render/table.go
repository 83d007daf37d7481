package render

import (
	"bufio"
	"cmp"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A Table writes connections in columns, sorted for people: TCP, UDP, then unix;
// listeners first; then by local port, local address, remote address and path.
type Table struct {
	Width    int  // of the terminal; 0: as wide as it takes
	Unicode  bool // show what was cut out as … instead of ~
	NoHeader bool
	NetNS    bool // with the network namespace of each
}

const (
	colProto = iota
	colLocal
	colRemote
	colStatus
	colPID
	colProcess
	colFD
	colNetNS
	numColumns
)

var columnNames = [numColumns]string{"PROTO", "LOCAL", "REMOTE", "STATUS", "PID", "PROCESS", "FD", "NETNS"}

// steps say which columns give way where the terminal is too narrow, and down to
// which width: what is longer than IPv4 first, then names, then any address.
var steps = []struct {
	columns []int
	min     int
}{
	{[]int{colLocal, colRemote}, addrWidth},
	{[]int{colProcess}, 8},
	{[]int{colLocal, colRemote}, 14},
}

// A tableRow holds the cells of one row, end to end. It is used again for the next.
type tableRow struct {
	text []byte
	end  [numColumns]int
}

func (r *tableRow) cell(column int) []byte {
	if column == 0 {
		return r.text[:r.end[0]]
	}
	return r.text[r.end[column-1]:r.end[column]]
}

// Write writes the table of conns.
func (t Table) Write(w io.Writer, conns []conn.Conn) error {
	sorted := make([]*conn.Conn, len(conns))
	for i := range conns {
		sorted[i] = &conns[i]
	}
	slices.SortFunc(sorted, compare)

	var row tableRow
	var l layout
	if !t.NoHeader {
		for i, name := range columnNames {
			l.widths[i] = len(name)
		}
	}
	// Rows are made twice, once for their widths and once to be written: that costs
	// less than to keep them.
	for _, c := range sorted {
		row.fill(c)
		for i := range l.widths {
			l.widths[i] = max(l.widths[i], utf8.RuneCount(row.cell(i)))
		}
	}
	t.fit(&l)

	out := bufio.NewWriterSize(w, 64<<10)
	var line []byte
	if !t.NoHeader {
		row.fillHeader()
		line = t.appendRow(line[:0], &row, &l)
		out.Write(line)
	}
	for _, c := range sorted {
		row.fill(c)
		line = t.appendRow(line[:0], &row, &l)
		out.Write(line)
	}
	return out.Flush() // bufio keeps the first error of any Write
}

func (t Table) columns() int {
	if t.NetNS {
		return numColumns
	}
	return colNetNS
}

// layout is where the columns stand.
type layout struct {
	widths [numColumns]int
	gap    int // between two columns
}

// fit narrows l, one character at a time, until a row fits into t.Width.
func (t Table) fit(l *layout) {
	l.gap = 2
	columns := t.columns()
	total := l.gap * (columns - 1)
	for _, w := range l.widths[:columns] {
		total += w
	}
	if t.Width == 0 || total <= t.Width {
		return
	}
	l.gap = 1
	total -= columns - 1
	for _, step := range steps {
		for ; total > t.Width; total-- {
			widest := slices.MaxFunc(step.columns, func(a, b int) int { return cmp.Compare(l.widths[a], l.widths[b]) })
			if l.widths[widest] <= step.min {
				break
			}
			l.widths[widest]--
		}
	}
}

func (t Table) appendRow(dst []byte, r *tableRow, l *layout) []byte {
	for i := range t.columns() {
		if i > 0 {
			dst = appendSpaces(dst, l.gap)
		}
		cell := r.cell(i)
		spaces := l.widths[i] - utf8.RuneCount(cell)
		switch {
		case spaces < 0:
			dst = t.appendCut(dst, cell, l.widths[i])
		case i == colPID || i == colFD || i == colNetNS: // numbers, to the right
			dst = append(appendSpaces(dst, spaces), cell...)
		default:
			dst = appendSpaces(append(dst, cell...), spaces)
		}
	}
	return append(dst, '\n')
}

// appendCut appends cell without as much of its middle as makes it width long:
// both the start of an address or path and its port or file name are of use.
func (t Table) appendCut(dst, cell []byte, width int) []byte {
	head := (width - 1) / 2
	tail := width - 1 - head
	runes := []rune(string(cell))
	dst = append(dst, string(runes[:head])...)
	if t.Unicode {
		dst = append(dst, "…"...)
	} else {
		dst = append(dst, '~')
	}
	return append(dst, string(runes[len(runes)-tail:])...)
}

func (r *tableRow) fillHeader() {
	r.text = r.text[:0]
	for i, name := range columnNames {
		r.text = append(r.text, name...)
		r.end[i] = len(r.text)
	}
}

func (r *tableRow) fill(c *conn.Conn) {
	b := append(r.text[:0], tableProto(c)...)
	r.end[colProto] = len(b)
	b = appendTableAddr(b, c.Laddr)
	r.end[colLocal] = len(b)
	b = appendTableAddr(b, c.Raddr)
	r.end[colRemote] = len(b)
	if c.Status == conn.StatusNone {
		b = append(b, '-')
	} else {
		b = append(b, c.Status.String()...)
	}
	r.end[colStatus] = len(b)
	b = appendKnown(b, uint64(c.PID), c.PID != 0)
	r.end[colPID] = len(b)
	if comm := process(c).Comm; comm == "" {
		b = append(b, '-')
	} else {
		b = appendVisible(b, comm)
	}
	r.end[colProcess] = len(b)
	b = appendKnown(b, uint64(c.FD), c.FD >= 0)
	r.end[colFD] = len(b)
	b = appendKnown(b, uint64(c.NetNS), c.Known.Has(conn.KnownNetNS))
	r.end[colNetNS] = len(b)
	r.text = b
}

// tableProto returns netstat's names for inet sockets, and ss's for unix ones.
func tableProto(c *conn.Conn) string {
	switch c.Kind() {
	case conn.KindTCP4:
		return "tcp"
	case conn.KindTCP6:
		return "tcp6"
	case conn.KindUDP4:
		return "udp"
	case conn.KindUDP6:
		return "udp6"
	}
	switch c.Type {
	case conn.Stream:
		return "u_str"
	case conn.Datagram:
		return "u_dgr"
	case conn.SeqPacket:
		return "u_seq"
	}
	return "-"
}

func appendTableAddr(dst []byte, a conn.Addr) []byte {
	switch {
	case a.IsUnix() && a.Path() != "":
		return appendVisible(dst, a.Path())
	case a.IsValid() && !a.IsUnix():
		return a.Append(dst)
	}
	return append(dst, '-')
}

func appendKnown(dst []byte, n uint64, known bool) []byte {
	if !known {
		return append(dst, '-')
	}
	return strconv.AppendUint(dst, n, 10)
}

func compare(a, b *conn.Conn) int {
	if c := cmp.Compare(rank(a), rank(b)); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Laddr.Port(), b.Laddr.Port()); c != 0 {
		return c
	}
	return cmp.Or(
		a.Laddr.IP().Compare(b.Laddr.IP()),
		a.Raddr.IP().Compare(b.Raddr.IP()),
		cmp.Compare(a.Raddr.Port(), b.Raddr.Port()),
		strings.Compare(a.Laddr.Path(), b.Laddr.Path()),
		cmp.Compare(a.PID, b.PID),
		cmp.Compare(a.FD, b.FD),
	)
}

// rank orders TCP listeners, other TCP sockets, UDP, unix.
func rank(c *conn.Conn) int {
	switch k := c.Kind(); {
	case c.Status == conn.StatusListen:
		return 0
	case k&conn.KindTCP != 0:
		return 1
	case k&conn.KindUDP != 0:
		return 2
	}
	return 3
}
