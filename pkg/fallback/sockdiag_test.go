package fallback

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
)

// The files in /testdata are what Linux 6.18 on amd64 said of the same sockets in
// one network namespace: a datagram of each sock_diag dump, and /proc/net.
func fixture(t testing.TB, name string) []byte {
	t.Helper()
	if hostEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the recorded dumps are little-endian")
	}
	b, err := os.ReadFile("../../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// decodeDump decodes the datagram b of a dump. The type is that of its inet
// sockets, 0 if they are unix sockets.
func decodeDump(b []byte, typ conn.Type) (conns []conn.Conn, pending uint32, err error) {
	for len(b) > 0 {
		var m message
		if m, b, err = nextMessage(b); err != nil {
			return nil, 0, err
		}
		c := conn.Conn{Type: typ}
		var n uint32
		if typ != 0 {
			err = decodeInetDiag(m.body, &c)
		} else {
			n, err = decodeUnixDiag(m.body, &c)
		}
		if err != nil {
			return nil, 0, err
		}
		conns, pending = append(conns, c), pending+n
	}
	return conns, pending, nil
}

func parseTable(b []byte, name string, family conn.Family, typ conn.Type) (s Snapshot, err error) {
	if family == conn.Unix {
		err = parseUnixTable(bytes.NewReader(b), name, &s)
	} else {
		err = parseInetTable(bytes.NewReader(b), name, family, typ, &s)
	}
	return s, err
}

var fixtures = []struct {
	name   string
	family conn.Family
	typ    conn.Type
	rows   int
}{
	{"tcp", conn.Inet, conn.Stream, 4},
	{"tcp6", conn.Inet6, conn.Stream, 5},
	{"udp", conn.Inet, conn.Datagram, 2},
	{"udp6", conn.Inet6, conn.Datagram, 1},
	{"unix", conn.Unix, 0, 12},
}

// Both ways to ask the kernel must give the same.
func TestRecorded(t *testing.T) {
	for _, f := range fixtures {
		decoded, pending, err := decodeDump(fixture(t, "sock_diag-"+f.name+"-6.18-amd64.bin"), f.typ)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
		parsed, err := parseTable(fixture(t, "proc-net-"+f.name+"-6.18-amd64.txt"), f.name, f.family, f.typ)
		if err != nil || len(parsed.Warnings) > 0 {
			t.Errorf("%s: %v, %v", f.name, err, parsed.Warnings)
		}
		if pending > 0 { // /proc/net/unix has these, without an inode
			parsed.Conns = parsed.Conns[pending:]
		}
		if len(decoded) != f.rows || len(parsed.Conns) != f.rows {
			t.Errorf("%s: %d and %d sockets, want %d", f.name, len(decoded), len(parsed.Conns), f.rows)
			continue
		}
		type socket struct {
			row
			inode uint64
		}
		have := make(map[socket]bool)
		for _, c := range decoded {
			have[socket{rowOf(c), c.Inode}] = true
		}
		for _, c := range parsed.Conns {
			if !have[socket{rowOf(c), c.Inode}] {
				t.Errorf("%s: in procfs only: %+v", f.name, c)
			}
		}
	}
}

func TestDecodeInetDiag(t *testing.T) {
	conns, _, err := decodeDump(fixture(t, "sock_diag-tcp6-6.18-amd64.bin"), conn.Stream)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range conns {
		lines = append(lines, c.Laddr.String()+" "+c.Raddr.String()+" "+c.Status.String())
	}
	got := strings.Join(lines, "\n")
	for _, want := range []string{
		"[::]:8080  LISTEN",
		"[::1]:36118 [::1]:8080 ESTABLISHED",
		"[::ffff:127.0.0.1]:8080 [::ffff:127.0.0.1]:52058 ESTABLISHED",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

func TestDecodeUnixDiag(t *testing.T) {
	conns, pending, err := decodeDump(fixture(t, "sock_diag-unix-6.18-amd64.bin"), 0)
	if err != nil || pending != 1 {
		t.Fatalf("%d pending, %v", pending, err)
	}
	var got []string
	for _, c := range conns {
		got = append(got, c.Type.String()+" "+c.Laddr.Path())
		if !c.Known.Has(conn.KnownUID | conn.KnownInode | conn.KnownCookie) {
			t.Errorf("%q: known %b", c.Laddr, c.Known)
		}
	}
	slices.Sort(got)
	want := []string{
		"SOCK_DGRAM /run/ctrec/a\nb", "SOCK_DGRAM /run/ctrec/a\r", "SOCK_DGRAM /run/ctrec/a b", "SOCK_DGRAM /run/ctrec/caf\xe9",
		"SOCK_DGRAM /run/ctrec/s", "SOCK_DGRAM @a@b@", "SOCK_DGRAM @abstract", "SOCK_SEQPACKET @a77a4",
		"SOCK_STREAM ", "SOCK_STREAM ", "SOCK_STREAM /run/ctrec/l", "SOCK_STREAM /run/ctrec/l",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// A record that is cut short anywhere is an error, and so is one of a socket that
// is not what was asked for.
func TestDecodeMalformed(t *testing.T) {
	for _, f := range fixtures {
		b := fixture(t, "sock_diag-"+f.name+"-6.18-amd64.bin")
		m, _, err := nextMessage(b)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(b) {
			if _, _, err := decodeDump(b[:n], f.typ); n < len(m.body)+sizeofNlmsghdr && n > 0 && err == nil {
				t.Errorf("%s: no error after %d bytes", f.name, n)
			}
		}
		size := sizeofInetDiagMsg
		if f.typ == 0 {
			size = len(m.body) // its attributes matter too
		}
		for n := range size {
			var c conn.Conn
			if f.typ == 0 {
				_, err = decodeUnixDiag(m.body[:n], &c)
			} else {
				err = decodeInetDiag(m.body[:n], &c)
			}
			// Attributes are optional: between two of them, at 16, 28 and 33 with its
			// padding, the record is whole.
			if whole := f.typ == 0 && slices.Contains([]int{16, 28, 33, 34, 35, 36}, n); whole != (err == nil) {
				t.Errorf("%s: record of %d bytes: %v", f.name, n, err)
			}
		}
	}

	b := make([]byte, sizeofInetDiagMsg)
	for _, bad := range [][2]byte{{0, 1}, {1, 1}, {linuxInet, 0}, {linuxInet, 13}, {linuxInet6, 255}} {
		b[0], b[1] = bad[0], bad[1]
		if err := decodeInetDiag(b, &conn.Conn{Type: conn.Stream}); err == nil {
			t.Errorf("family %d, state %d: no error", bad[0], bad[1])
		}
	}
	b[0], b[1] = linuxInet, tcpNewSynRecv
	c := conn.Conn{Type: conn.Stream}
	if err := decodeInetDiag(b, &c); err != nil || c.Status != conn.StatusSynRecv {
		t.Errorf("NEW_SYN_RECV: %v, %v", c.Status, err)
	}
}

// nlmsg appends a netlink message to b.
func nlmsg(b []byte, kind, flags uint16, seq uint32, body ...byte) []byte {
	b = hostEndian.AppendUint32(b, uint32(sizeofNlmsghdr+len(body)))
	b = hostEndian.AppendUint16(b, kind)
	b = hostEndian.AppendUint16(b, flags)
	b = hostEndian.AppendUint32(b, seq)
	b = hostEndian.AppendUint32(b, 0)
	b = append(b, body...)
	return append(b, make([]byte, -len(body)&3)...)
}

func errnoBody(errno int32) []byte { return hostEndian.AppendUint32(nil, uint32(-errno)) }

func TestDump(t *testing.T) {
	const seq, multi = 7, 2
	record := nlmsg(nil, sockDiagByFamily, multi, seq, 1, 2, 3, 4, 5)
	last := nlmsg(nil, nlmsgDone, multi, seq, errnoBody(0)...)
	for _, test := range []struct {
		name    string
		b       []byte
		records int
		done    bool
		torn    bool
		err     error
	}{
		{"nothing", nil, 0, false, false, nil},
		{"records", slices.Concat(record, record), 2, false, false, nil},
		{"end", slices.Concat(record, last), 1, true, false, nil},
		{"of another request", slices.Concat(nlmsg(nil, nlmsgDone, 0, seq+1, errnoBody(5)...), record), 1, false, false, nil},
		{"torn", slices.Concat(nlmsg(nil, sockDiagByFamily, multi|nlmFDumpIntr, seq, 1), last), 1, true, true, nil},
		{"torn at the end", slices.Concat(record, nlmsg(nil, nlmsgDone, nlmFDumpIntr, seq, errnoBody(0)...)), 1, true, true, nil},
		{"refused", nlmsg(nil, nlmsgError, 0, seq, append(errnoBody(1), record...)...), 0, false, false, syscall.Errno(1)},
		{"failed half way", slices.Concat(record, nlmsg(nil, nlmsgDone, multi, seq, errnoBody(2)...)), 1, false, false, syscall.Errno(2)},
		{"cut short", record[:len(record)-4], 0, false, false, errShort},
		{"no errno", nlmsg(nil, nlmsgDone, multi, seq, 0, 0), 0, false, false, errShort},
		{"less than a header", record[:8], 0, false, false, errShort},
		{"no length", make([]byte, 16), 0, false, false, errShort},
	} {
		n := 0
		d := dump{seq: seq, record: func([]byte) { n++ }}
		done, err := d.add(test.b)
		if n != test.records || done != test.done || d.torn != test.torn || !errors.Is(err, test.err) {
			t.Errorf("%s: %d records, done %v, torn %v, %v", test.name, n, done, d.torn, err)
		}
	}
}

func FuzzDecodeDump(f *testing.F) {
	for _, x := range fixtures {
		f.Add(fixture(f, "sock_diag-"+x.name+"-6.18-amd64.bin"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := dump{record: func([]byte) {}}
		d.add(b)
		for len(b) > 0 {
			m, rest, err := nextMessage(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			b = rest
			c := conn.Conn{Type: conn.Stream}
			if err := decodeInetDiag(m.body, &c); err == nil && (c.Status == 0 || c.Status > conn.StatusClosing || c.Kind() == 0) {
				t.Errorf("got %+v", c)
			}
			c = conn.Conn{}
			if _, err := decodeUnixDiag(m.body, &c); err == nil && strings.Contains(c.Laddr.Path(), "\x00") {
				t.Errorf("NUL in %q", c.Laddr.Path())
			}
		}
	})
}

func BenchmarkDecodeInetDiag(b *testing.B) {
	m, _, err := nextMessage(fixture(b, "sock_diag-tcp6-6.18-amd64.bin"))
	if err != nil {
		b.Fatal(err)
	}
	c := conn.Conn{Type: conn.Stream}
	b.ReportAllocs()
	for b.Loop() {
		if err := decodeInetDiag(m.body, &c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeUnixDiag(b *testing.B) {
	_, rest, err := nextMessage(fixture(b, "sock_diag-unix-6.18-amd64.bin"))
	if err != nil {
		b.Fatal(err)
	}
	m, _, err := nextMessage(rest) // the first one has no name
	if err != nil {
		b.Fatal(err)
	}
	var c conn.Conn
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeUnixDiag(m.body, &c); err != nil {
			b.Fatal(err)
		}
	}
}
