package fallback

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
)

const inetHeading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

// hexWord returns what the kernel prints for an IPv4 address on this machine.
func hexWord(a, b, c, d byte) string {
	return fmt.Sprintf("%08X", hostEndian.Uint32([]byte{a, b, c, d}))
}

func TestParseInetTable(t *testing.T) {
	local := hexWord(127, 0, 0, 1)
	line := func(i int, laddr, raddr, state, inode string) string {
		return fmt.Sprintf("%4d: %s %s %s 00000000:00000000 00:00000000 00000000  1000        0 %s 1 0000000000000000 20 4 30 10 -1\n",
			i, laddr, raddr, state, inode)
	}
	good := line(0, local+":1F90", "00000000:0000", "0A", "21303")
	want := row{0, conn.Inet, conn.Stream, conn.AddrIPv4([4]byte{127, 0, 0, 1}, 8080), conn.Addr{}, conn.StatusListen, 0}
	for _, test := range []struct {
		name, table string
		rows, bad   int
	}{
		{"empty", "", 0, 0},
		{"heading only", inetHeading, 0, 0},
		{"no newline", inetHeading + strings.TrimSuffix(good, "\n"), 0, 1},
		{"padded", inetHeading + strings.Replace(good, "\n", "        \n", 1), 1, 0},
		{"ten fields", inetHeading + "0: " + local + ":1F90 00000000:0000 0A 0:0 0:0 0 0 0 21303\n", 1, 0},
		{"nine fields", inetHeading + "0: " + local + ":1F90 00000000:0000 0A 0:0 0:0 0 0 0\n" + good, 1, 1},
		{"blank line", inetHeading + "\n" + good, 1, 1},
		{"cut short", inetHeading + good + good[:40], 1, 1},
		{"cut in the inode", inetHeading + good + good[:strings.Index(good, "21303")+3], 1, 1},
		{"text", inetHeading + good + "what is this\n" + good, 2, 1},
		{"no port", inetHeading + strings.Replace(good, ":1F90", "", 1) + good, 1, 1},
		{"long port", inetHeading + strings.Replace(good, ":1F90", ":11F90", 1) + good, 1, 1},
		{"IPv6 address", inetHeading + strings.Replace(good, local, strings.Repeat(local, 4), 1) + good, 1, 1},
		{"bad digit", inetHeading + strings.Replace(good, "1F90", "1G90", 1) + good, 1, 1},
		{"state 0", inetHeading + line(0, local+":1F90", "00000000:0000", "00", "1") + good, 1, 1},
		{"state 13", inetHeading + line(0, local+":1F90", "00000000:0000", "0D", "1") + good, 1, 1},
		{"negative inode", inetHeading + line(0, local+":1F90", "00000000:0000", "0A", "-1") + good, 1, 1},
		{"huge inode", inetHeading + line(0, local+":1F90", "00000000:0000", "0A", "18446744073709551616") + good, 1, 1},
	} {
		s, err := parseTable([]byte(test.table), "net/tcp", conn.Inet, conn.Stream)
		if err != nil || len(s.Conns) != test.rows || len(s.Warnings) != test.bad {
			t.Errorf("%s: %d rows, %v, %v; want %d rows and %d warnings", test.name, len(s.Conns), s.Warnings, err, test.rows, test.bad)
		}
		for _, c := range s.Conns {
			if rowOf(c) != want || c.Inode != 21303 || c.UID != uint32(1000*min(1, int(c.UID))) {
				t.Errorf("%s: got %+v", test.name, c)
			}
		}
	}

	s, err := parseTable([]byte(inetHeading+good+"x y\n"), "net/tcp", conn.Inet, conn.Stream)
	if err != nil || len(s.Warnings) != 1 || s.Warnings[0].Error() != `net/tcp: line 2: malformed line: "x y"` {
		t.Errorf("got %v, %v", s.Warnings, err)
	}
}

// A line that is longer than any that a kernel prints costs no more than itself.
func TestParseLongLine(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	good := "   0: " + hexWord(127, 0, 0, 1) + ":1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 21303 1\n"
	s, err := parseTable([]byte(inetHeading+good+long+"\n"+good), "net/tcp", conn.Inet, conn.Stream)
	if err != nil || len(s.Conns) != 2 || len(s.Warnings) != 1 || len(s.Warnings[0].Error()) > 1000 {
		t.Errorf("%d rows, %d warnings, %v", len(s.Conns), len(s.Warnings), err)
	}
}

func TestParseUnixTable(t *testing.T) {
	const heading = "Num       RefCount Protocol Flags    Type St Inode Path\n"
	line := func(inode, rest string) string {
		return "0000000000000000: 00000002 00000000 00010000 0001 01 " + inode + rest + "\n"
	}
	long := strings.Repeat("p", 100)
	for _, test := range []struct {
		name, table string
		paths       []string
		bad         int
	}{
		{"empty", "", nil, 0},
		{"heading only", heading, nil, 0},
		{"no name", heading + line("16384", ""), []string{""}, 0},
		{"padded inode", heading + line("    0", " /s"), []string{"/s"}, 0},
		{"32-bit pointer", heading + strings.TrimPrefix(line("16384", " /s"), "00000000"), []string{"/s"}, 0},
		{"pointer not hashed yet", heading + strings.Replace(line("16384", " /s"), "0000000000000000", "(____ptrval____)", 1), []string{"/s"}, 0},
		{"space", heading + line("16384", " /a b ") + line("16385", "  /c"), []string{"/a b ", " /c"}, 0},
		{"carriage return", heading + line("16384", " /a\r"), []string{"/a\r"}, 0},
		{"not UTF-8", heading + line("16384", " /caf\xe9\xff"), []string{"/caf\xe9\xff"}, 0},
		{"newline", heading + line("16384", " /a\nb c d e f g h") + line("16385", ""), []string{"/a\nb c d e f g h", ""}, 0},
		{"newlines", heading + line("16384", " /a\n\n") + line("16385", " /b\n"), []string{"/a\n\n", "/b\n"}, 0},
		{"cut in the inode", heading + line("16384", " /s") + strings.TrimSuffix(line("163", ""), "\n"), []string{"/s"}, 1},
		{"cut in the name", heading + line("16384", " /s") + strings.TrimSuffix(line("16385", " /x"), "\n"), []string{"/s"}, 1},
		{"stray line", heading + "text\n" + line("16384", "") + "text\n" + line("16385", " /s"), []string{"", "/s"}, 2},
		{"name too long", heading + line("16384", " "+long+"\n"+long), []string{long}, 1},
		{"forged row", heading + line("16384", " /a\n"+line("16385", " /b")), []string{"/a", "/b\n"}, 0},
		{"forged row of another socket", heading + line("16384", " /victim") + line("16385", " /a\n"+strings.TrimSuffix(line("16384", " /b"), "\n")),
			[]string{"/victim", "/a", "/b"}, 1},
		{"listed twice", heading + line("16384", " /s") + line("16384", " /s"), []string{"/s", "/s"}, 0},
		{"no inode", heading + line("    0", " /a") + line("    0", " /b"), []string{"/a", "/b"}, 0},
	} {
		s, err := parseTable([]byte(test.table), "net/unix", conn.Unix, 0)
		var paths []string
		for _, c := range s.Conns {
			paths = append(paths, c.Laddr.Path())
			if c.Kind() != conn.KindUnix || c.Type != conn.Stream || !c.Laddr.IsUnix() || !c.Raddr.IsUnix() {
				t.Errorf("%s: got %+v", test.name, c)
			}
		}
		if err != nil || !slices.Equal(paths, test.paths) || len(s.Warnings) != test.bad {
			t.Errorf("%s: got %q, %v, %v; want %q and %d warnings", test.name, paths, s.Warnings, err, test.paths, test.bad)
		}
	}
}

func TestParseNumbers(t *testing.T) {
	for _, test := range []struct {
		in   string
		bits int
		want uint64
		ok   bool
	}{
		{"0", 31, 0, true}, {"2147483647", 31, 1<<31 - 1, true}, {"2147483648", 31, 0, false},
		{"18446744073709551615", 64, 1<<64 - 1, true}, {"18446744073709551616", 64, 0, false}, {"99999999999999999999", 64, 0, false},
		{"", 64, 0, false}, {"-1", 64, 0, false}, {"+1", 64, 0, false}, {" 1", 64, 0, false}, {"1/", 64, 0, false}, {"1:", 64, 0, false},
	} {
		if got, ok := parseUint([]byte(test.in), test.bits); ok != test.ok || ok && got != test.want {
			t.Errorf("parseUint(%q, %d) = %d, %v", test.in, test.bits, got, ok)
		}
	}
	for in, want := range map[string]uint32{"0": 0, "fF": 255, "FFFFFFFF": 1<<32 - 1} {
		if got, ok := parseHex([]byte(in)); !ok || got != want {
			t.Errorf("parseHex(%q) = %d, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "G", "0x1", "-1", "100000000", "@", "`"} {
		if got, ok := parseHex([]byte(in)); ok {
			t.Errorf("parseHex(%q) = %d", in, got)
		}
	}
}

// A table that ends in the middle of a line gives the sockets before it and a
// warning, but no socket that does not exist.
func TestParseCut(t *testing.T) {
	for _, f := range fixtures {
		b := fixture(t, "proc-net-"+f.name+"-6.18-amd64.txt")
		all, err := parseTable(b, f.name, f.family, f.typ)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(b) {
			s, err := parseTable(b[:n], f.name, f.family, f.typ)
			if err != nil {
				t.Fatal(err)
			}
			for i, c := range s.Conns {
				// A line of the unix table that is cut may have gone on with the last name.
				if last := f.family == conn.Unix && i == len(s.Conns)-1; !last && (rowOf(c) != rowOf(all.Conns[i]) || c.Inode != all.Conns[i].Inode) {
					t.Errorf("%s: first %d bytes: %+v", f.name, n, c)
				}
			}
			whole := n == 0 || b[n-1] == '\n' || countLines(b[:n]) == 1 // of which the heading is no row
			if !whole && (len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0].Error(), f.name+": line ")) {
				t.Errorf("%s: first %d bytes: warnings %v", f.name, n, s.Warnings)
			}
		}
	}
}

func FuzzParseInetTable(f *testing.F) {
	for _, x := range fixtures[:4] {
		f.Add(fixture(f, "proc-net-"+x.name+"-6.18-amd64.txt"), x.family == conn.Inet6)
	}
	f.Fuzz(func(t *testing.T, b []byte, six bool) {
		family := conn.Inet
		if six {
			family = conn.Inet6
		}
		s, err := parseTable(b, "net/tcp", family, conn.Stream)
		if err != nil {
			t.Fatal(err)
		}
		checkLines(t, b, s)
		for _, c := range s.Conns {
			if c.Status == 0 || c.Status > conn.StatusClosing {
				t.Errorf("got %+v", c)
			}
		}
	})
}

func FuzzParseUnixTable(f *testing.F) {
	f.Add(fixture(f, "proc-net-unix-6.18-amd64.txt"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseTable(b, "net/unix", conn.Unix, 0)
		if err != nil {
			t.Fatal(err)
		}
		lines := 0
		for _, c := range s.Conns {
			lines += strings.Count(c.Laddr.Path(), "\n")
		}
		for _, w := range s.Warnings {
			if strings.Contains(w.Error(), "forged") {
				lines--
			}
		}
		if want := max(0, countLines(b)-1); lines+len(s.Conns)+len(s.Warnings) != want {
			t.Errorf("%d sockets, %d lines more in their names, %d warnings of %d lines", len(s.Conns), lines, len(s.Warnings), want)
		}
	})
}

// checkLines checks that each line but the first made a row or a warning.
func checkLines(t *testing.T, b []byte, s Snapshot) {
	t.Helper()
	if want := max(0, countLines(b)-1); len(s.Conns)+len(s.Warnings) != want {
		t.Errorf("%d rows and %d warnings of %d lines", len(s.Conns), len(s.Warnings), want)
	}
}

func countLines(b []byte) int {
	n := strings.Count(string(b), "\n")
	if len(b) > 0 && b[len(b)-1] != '\n' {
		n++
	}
	return n
}

func BenchmarkParseInetTable(b *testing.B) {
	table := fixture(b, "proc-net-tcp-6.18-amd64.txt")
	heading, line := table[:150], table[150:300]
	benchmarkTable(b, slices.Concat(heading, []byte(strings.Repeat(string(line), 10_000))), conn.Inet, conn.Stream)
}

func BenchmarkParseUnixTable(b *testing.B) {
	heading, rows, _ := strings.Cut(string(fixture(b, "proc-net-unix-6.18-amd64.txt")), "\n")
	benchmarkTable(b, []byte(heading+"\n"+strings.Repeat(rows, 1000)), conn.Unix, 0)
}

func benchmarkTable(b *testing.B, table []byte, family conn.Family, typ conn.Type) {
	b.SetBytes(int64(len(table)))
	b.ReportAllocs()
	for b.Loop() {
		s, err := parseTable(table, "net", family, typ)
		if err != nil || len(s.Conns) < 10_000 || len(s.Warnings) > 0 {
			b.Fatal(len(s.Conns), s.Warnings, err)
		}
	}
}
