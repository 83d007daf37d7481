package fallback

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/conntrace/conntrace/pkg/conn"
)

// unixPathMax is UNIX_PATH_MAX, the size of sockaddr_un.sun_path (unix(7)).
const unixPathMax = 108

var (
	errMalformed = errors.New("malformed line")
	errCut       = errors.New("line is cut short")
)

// A lineReader reads the lines of a table in /proc/net.
type lineReader struct {
	name   string // of the file, for errors
	r      *bufio.Reader
	number int  // of the last line; the heading is line 0, as psutil counts
	cut    bool // the last line has no newline: what is left of a number is another number
}

func newLineReader(r io.Reader, name string) *lineReader {
	// The kernel gives a page at a time (seq_read), and its lines are far shorter.
	return &lineReader{name: name, r: bufio.NewReaderSize(r, 8<<10), number: -1}
}

// next returns the next line without its newline, good until the next call; what
// does not fit into the buffer is left out. The error is io.EOF at the end.
func (l *lineReader) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		line = bytes.Clone(line)
		for err == bufio.ErrBufferFull {
			_, err = l.r.ReadSlice('\n')
		}
	}
	if err != nil && (err != io.EOF || len(line) == 0) {
		return nil, err
	}
	l.number++
	l.cut = err == io.EOF
	return bytes.TrimSuffix(line, []byte("\n")), nil
}

// malformed returns a warning about the line.
func (l *lineReader) malformed(line []byte, err error) error {
	return fmt.Errorf("%s: line %d: %w: %.500q", l.name, l.number, err, line)
}

// parseInetTable appends the sockets in one of /proc/net/{tcp,tcp6,udp,udp6},
// which is called name, to s.
func parseInetTable(r io.Reader, name string, family conn.Family, typ conn.Type, s *Snapshot) error {
	return eachInetRow(r, name, family, typ, &s.Warnings, func(c *conn.Conn, _ bool) { s.Conns = append(s.Conns, *c) })
}

// eachInetRow calls row with each socket in such a table. row may change what it
// gets, but not keep it. timeWait says that the socket is what a connection has left
// behind, whatever its state.
func eachInetRow(r io.Reader, name string, family conn.Family, typ conn.Type, warnings *[]error, row func(c *conn.Conn, timeWait bool)) error {
	lines := newLineReader(r, name)
	var c conn.Conn
	for {
		line, err := lines.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if lines.number == 0 {
			continue
		}
		c = conn.Conn{Family: family, Type: typ}
		timeWait, err := parseInetLine(line, &c)
		if err == nil && lines.cut {
			err = errCut
		}
		if err != nil {
			*warnings = append(*warnings, lines.malformed(line, err))
			continue
		}
		row(&c, timeWait)
	}
}

// parseInetLine fills c, whose Family and Type are set, from a line that
// get_tcp4_sock in net/ipv4/tcp_ipv4.c or its like printed:
//
//	sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
//	 0: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000   999        0 21303 1 ...
//
// The timer (tr) is 3 for what a connection has left behind, be its state TIME_WAIT
// or FIN_WAIT2 (get_timewait4_sock).
func parseInetLine(line []byte, c *conn.Conn) (timeWait bool, err error) {
	f := fieldReader{rest: line}
	f.skip(1)
	c.Laddr = f.addr(c.Family)
	c.Raddr = f.addr(c.Family)
	state := f.hex(2)
	f.skip(1)
	timer := f.next()
	f.skip(1)
	uid := f.decimal(32)
	f.skip(1)
	c.Inode = f.decimal(64)
	if f.bad {
		return false, errMalformed
	}
	if c.Type == conn.Stream {
		if c.Status, err = statusOf(uint8(state)); err != nil {
			return false, err
		}
	}
	c.Known = conn.KnownInode
	setUID(c, uint32(uid))
	return bytes.HasPrefix(timer, []byte("03:")), nil
}

// parseUnixTable appends the sockets in /proc/net/unix, which is called name, to
// s. A name may hold any byte, newlines too: a line that is none of the table's
// goes on with the name before it. A name that holds a newline and then a
// well-formed line cannot be told from two sockets; if such a line claims the
// inode of another socket, that is a warning.
func parseUnixTable(r io.Reader, name string, s *Snapshot) error {
	lines := newLineReader(r, name)
	var last conn.Conn // the socket whose name may go on
	var path []byte
	byInode := make(map[uint64]conn.Addr)
	flush := func() {
		if last.Family != conn.Unix {
			return
		}
		last.Laddr = conn.AddrUnix(string(path))
		if other, ok := byInode[last.Inode]; ok && last.Inode != 0 && other != last.Laddr {
			s.Warnings = append(s.Warnings, fmt.Errorf("%s: socket %d is named both %q and %q: one of the names is forged",
				name, last.Inode, other.Path(), last.Laddr.Path()))
		}
		byInode[last.Inode] = last.Laddr
		s.Conns = append(s.Conns, last)
	}
	for {
		line, err := lines.next()
		if err == io.EOF {
			flush()
			return nil
		}
		if err != nil {
			return err
		}
		if lines.number == 0 {
			continue
		}
		c, rest, ok := parseUnixLine(line)
		switch {
		case lines.cut:
			s.Warnings = append(s.Warnings, lines.malformed(line, errCut))
		case ok:
			flush()
			last, path = c, append(path[:0], rest...)
		case len(path) > 0 && len(path)+1+len(line) <= unixPathMax:
			path = append(append(path, '\n'), line...)
		default:
			s.Warnings = append(s.Warnings, lines.malformed(line, errMalformed))
		}
	}
}

// parseUnixLine parses a line that unix_seq_show in net/unix/af_unix.c printed.
// The name is what follows the inode, byte for byte.
//
//	Num       RefCount Protocol Flags    Type St Inode Path
//	00000000f1e2d3c4: 00000002 00000000 00010000 0001 01 16384 /run/systemd/private
func parseUnixLine(line []byte) (c conn.Conn, name []byte, ok bool) {
	f := fieldReader{rest: line}
	num := f.next()
	f.hex(8)
	f.hex(8)
	f.hex(8)
	typ := f.hex(4)
	f.hex(2)
	inode := f.decimal(64)
	if len(f.rest) > 0 {
		name = f.rest[1:]
	}
	if f.bad || num[len(num)-1] != ':' || typ > 0xff || len(name) > unixPathMax {
		return conn.Conn{}, nil, false
	}
	return conn.Conn{
		Family: conn.Unix,
		Type:   conn.Type(typ),
		Raddr:  conn.AddrUnix(""),
		Known:  conn.KnownInode,
		Inode:  inode,
	}, name, true
}
