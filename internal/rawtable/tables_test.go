package rawtable

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
)

// recorded returns the tables in testdata/DIR with these names, or all.
func recorded(t testing.TB, dir string, names ...string) Tables {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.bin"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tables in testdata/%s: %v", dir, err)
	}
	tables := make(Tables)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".bin")
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		if tables[name], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	return tables
}

func system(t testing.TB, goos, goarch string) *Unix {
	t.Helper()
	u, err := UnixOf(goos, goarch)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// format returns the rows as sorted lines.
func format(rows []conn.Conn) []string {
	var lines []string
	for _, c := range rows {
		line := fmt.Sprintf("%d/%d %s %s %q %q %s", c.PID, c.FD, c.Family, c.Type, c.Laddr, c.Raddr, c.Status)
		for _, h := range c.Holders {
			line += fmt.Sprintf(" %d/%d", h.PID, h.FD)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

func check(t *testing.T, what string, rows []conn.Conn, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := format(rows); !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What is in the tables of testdata/layout.
const (
	listener4   = ` AF_INET SOCK_STREAM "0.0.0.0:8080" "" LISTEN`
	connected4  = ` AF_INET SOCK_STREAM "10.1.2.3:50000" "192.0.2.7:443" ESTABLISHED`
	closing6    = ` AF_INET6 SOCK_STREAM "[::1]:8081" "[::1]:51000" FIN_WAIT1`
	mapped6     = ` AF_INET6 SOCK_STREAM "[::ffff:127.0.0.1]:8082" "[::ffff:127.0.0.1]:51001" ESTABLISHED`
	dns4        = ` AF_INET SOCK_DGRAM "127.0.0.1:53" "" NONE`
	unixServer  = ` AF_UNIX SOCK_STREAM "/tmp/a sock" "" NONE`
	unixClient  = ` AF_UNIX SOCK_STREAM "" "/tmp/a sock" NONE`
	noProcess   = "0/-1"
	somebodys   = ` AF_INET SOCK_STREAM "10.1.2.3:22" "192.0.2.9:60000" ESTABLISHED`
	listener6   = ` AF_INET6 SOCK_STREAM "[::]:8082" "" LISTEN`
	unbound6    = ` AF_INET6 SOCK_DGRAM "[::]:0" "" NONE`
	idle54      = ` AF_INET SOCK_DGRAM "127.0.0.1:54" "" NONE`
	idle6       = ` AF_INET6 SOCK_DGRAM "[::1]:55" "" NONE`
	hiddenDgram = ` AF_INET SOCK_DGRAM "0.0.0.0:0" "" NONE`
)

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		goos, goarch, dir string
		options           Options
		tables            []string
		want              []string
	}{
		// The first holder of a socket; per process each descriptor.
		{"freebsd", "amd64", "freebsd", Options{}, nil, []string{
			"100/3" + listener4, "100/4" + connected4, "101/8" + closing6, "101/9" + dns4, "102/3" + unixServer, "102/5" + mapped6,
		}},
		{"freebsd", "386", "freebsd-386", Options{}, nil, []string{
			"100/3" + listener4, "100/4" + connected4, "101/8" + closing6, "101/9" + dns4, "102/3" + unixServer, "102/5" + mapped6,
		}},
		{"freebsd", "amd64", "freebsd", Options{PID: 101}, nil, []string{"101/7" + listener4, "101/8" + closing6, "101/9" + dns4}},
		{"freebsd", "amd64", "freebsd", Options{PID: 102}, nil, []string{"102/3" + unixServer, "102/4" + unixServer, "102/5" + mapped6}},
		{"freebsd", "amd64", "freebsd", Options{Holders: true}, []string{FreeBSDFiles, FreeBSDTCP}, []string{
			"100/3" + listener4 + " 100/3 101/7", "100/4" + connected4 + " 100/4", "101/8" + closing6 + " 101/8", "102/5" + mapped6 + " 102/5",
		}},
		// Each descriptor.
		{"openbsd", "amd64", "openbsd", Options{}, nil, []string{
			"100/3" + listener4, "100/4" + connected4, "101/5" + closing6, "101/6" + dns4, "101/7" + unbound6, "102/8" + unixServer,
		}},
		{"openbsd", "386", "openbsd-386", Options{PID: 101}, nil, []string{"101/5" + closing6, "101/6" + dns4, "101/7" + unbound6}},
		{"netbsd", "amd64", "netbsd", Options{}, nil, []string{
			"100/3" + listener4, "100/4" + connected4, "101/7" + listener4, "101/8" + closing6, "101/9" + dns4, "102/3" + unixServer, "102/4" + unixClient,
		}},
		{"netbsd", "arm64", "netbsd", Options{PID: 100, Holders: true}, []string{NetBSDFiles, NetBSDTCP4}, []string{
			"100/3" + listener4 + " 100/3 101/7", "100/4" + connected4 + " 100/4",
		}},
		// Who created it.
		{"illumos", "amd64", "illumos", Options{}, nil, []string{
			"100/-1" + listener4, "100/-1" + connected4, "101/-1" + closing6, "101/-1" + dns4, "101/-1" + idle54, "102/-1" + idle6,
		}},
		// Each descriptor, and what only the pcblists know.
		{"darwin", "arm64", "darwin", Options{}, []string{DarwinHeld}, []string{
			"100/3" + listener4, "100/4" + connected4, "101/8" + closing6, "101/9" + dns4, "102/3" + unixClient, "102/5" + mapped6,
		}},
		{"darwin", "arm64", "darwin", Options{}, []string{DarwinHeld, DarwinTCP, DarwinUDP, DarwinUnixStream}, []string{
			noProcess + somebodys, noProcess + listener6, noProcess + unixServer,
			"100/3" + listener4, "100/4" + connected4, "101/8" + closing6, "101/9" + dns4, "102/3" + unixClient, "102/5" + mapped6,
		}},
		{"darwin", "amd64", "darwin", Options{PID: 101, Holders: true}, []string{DarwinHeld}, []string{"101/8" + closing6 + " 101/8", "101/9" + dns4 + " 101/9"}},
		{"darwin", "amd64", "darwin", Options{}, []string{DarwinUDP}, []string{noProcess + dns4}},
	} {
		what := fmt.Sprintf("%s/%s %+v", tt.goos, tt.goarch, tt.options)
		rows, warnings, err := system(t, tt.goos, tt.goarch).Decode(withoutOthers(recorded(t, tt.dir, tt.tables...)), tt.options)
		if err != nil || len(warnings) > 0 {
			t.Errorf("%s: %v, %v", what, warnings, err)
		}
		check(t, what, rows, tt.want...)
	}
}

// withoutOthers leaves out the table of another version of macOS.
func withoutOthers(t Tables) Tables {
	delete(t, "udp-darwin-21")
	return t
}

// Darwin 21 had shorter records.
func TestDecodeDarwin21(t *testing.T) {
	old := Tables{DarwinUDP: recorded(t, "darwin")["udp-darwin-21"]}
	rows, _, err := system(t, "darwin", "arm64").Decode(old, Options{})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "udp", rows, noProcess+dns4)
}

// What is there beyond psutil's fields.
func TestDecodeDetails(t *testing.T) {
	rows, _, err := system(t, "openbsd", "amd64").Decode(recorded(t, "openbsd"), Options{PID: 102})
	if err != nil || len(rows) != 1 || rows[0].Process == nil || rows[0].Process.Comm != "nginx" || rows[0].Process.PID != 102 {
		t.Errorf("openbsd: %+v, %v", rows, err)
	}
	rows, _, err = system(t, "freebsd", "amd64").Decode(recorded(t, "freebsd", FreeBSDFiles, FreeBSDUDP), Options{})
	if err != nil || len(rows) != 1 || !rows[0].Known.Has(conn.KnownUID) || rows[0].UID != 1001 {
		t.Errorf("freebsd: %+v, %v", rows, err)
	}
	rows, _, err = system(t, "darwin", "arm64").Decode(recorded(t, "darwin", DarwinUDP), Options{})
	if err != nil || len(rows) != 1 || !rows[0].Known.Has(conn.KnownUID) || rows[0].UID != 501 {
		t.Errorf("darwin: %+v, %v", rows, err)
	}
}

// NetBSD with kern.expose_address=0 has no addresses: the sockets are there, but not
// their owners, and that is told.
func TestDecodeHiddenAddresses(t *testing.T) {
	tables := recorded(t, "netbsd", NetBSDFiles, NetBSDUDP4)
	for off := 0; off < len(tables[NetBSDFiles]); off += NetBSDFileSize {
		clear(tables[NetBSDFiles][off+netbsdFileData:][:8])
	}
	for off := 0; off < len(tables[NetBSDUDP4]); off += NetBSDPcbSize {
		clear(tables[NetBSDUDP4][off+netbsdPcbSocket:][:8])
	}
	rows, warnings, err := system(t, "netbsd", "amd64").Decode(tables, Options{})
	if err != nil || len(warnings) != 1 || !errors.Is(warnings[0], fs.ErrPermission) {
		t.Errorf("%v, %v", warnings, err)
	}
	check(t, "rows", rows, noProcess+hiddenDgram, noProcess+dns4)
}

// macOS 27 may leave all sockets of others out of its tables.
func TestDecodeWithheld(t *testing.T) {
	u := system(t, "darwin", "arm64")
	tables := recorded(t, "darwin", DarwinHeld, DarwinTCP, DarwinUDP)
	if _, warnings, err := u.Decode(tables, Options{}); err != nil || len(warnings) > 0 {
		t.Errorf("with others: %v, %v", warnings, err)
	}
	withheld, err := u.Filter(tables, 100)
	if err != nil {
		t.Fatal(err)
	}
	withheld[DarwinHeld] = tables[DarwinHeld]
	rows, warnings, err := u.Decode(withheld, Options{})
	if err != nil || len(rows) != 6 || !slices.Equal(warnings, []error{ErrWithheld}) {
		t.Errorf("without: %d rows, %v, %v", len(rows), warnings, err)
	}
	delete(withheld, DarwinTCP)
	withheld[DarwinUDP] = slices.Concat(withheld[DarwinUDP][:darwinGenSize], withheld[DarwinUDP][:darwinGenSize])
	if _, warnings, err = u.Decode(withheld, Options{}); err != nil || !slices.Equal(warnings, []error{ErrWithheld}) {
		t.Errorf("48 bytes: %v, %v", warnings, err)
	}
}

func TestDecodeUnknownState(t *testing.T) {
	for _, tt := range []struct {
		goos, dir, table string
		state            int // offset in the table
	}{
		{"freebsd", "freebsd", FreeBSDTCP, freebsdInpGenSize + freebsdTcpcbState},
		{"openbsd", "openbsd", OpenBSDFiles, OpenBSDFileSize + openbsdFileState},
		{"netbsd", "netbsd", NetBSDTCP4, netbsdPcbState},
		{"illumos", "illumos", IllumosTCP4, illumosTCP4State},
		{"darwin", "darwin", DarwinHeld, darwinHeldHead + darwinSocketState},
	} {
		tables := withoutOthers(recorded(t, tt.dir))
		u := system(t, tt.goos, "amd64")
		before, _, err := u.Decode(tables, Options{PID: 100})
		if err != nil {
			t.Fatal(err)
		}
		tables[tt.table][tt.state] = 77
		rows, warnings, err := u.Decode(tables, Options{PID: 100})
		if err != nil || len(warnings) != 1 {
			t.Errorf("%s: %v, %v", tt.goos, warnings, err)
			continue
		}
		if state := new(StateError); !errors.As(warnings[0], &state) || state.State != 77 || state.Rows != 1 {
			t.Errorf("%s: %v", tt.goos, warnings[0])
		}
		if len(rows) != len(before)-1 {
			t.Errorf("%s: %d rows of %d", tt.goos, len(rows), len(before))
		}
	}
}

// A table that is cut short or grown at any place is an error, or has fewer whole
// records; it is never misread in silence.
func TestDecodeWrongSize(t *testing.T) {
	for _, s := range []struct{ goos, dir string }{
		{"freebsd", "freebsd"}, {"openbsd", "openbsd"}, {"netbsd", "netbsd"}, {"illumos", "illumos"}, {"darwin", "darwin"},
	} {
		u := system(t, s.goos, "amd64")
		for name, raw := range withoutOthers(recorded(t, s.dir)) {
			whole := records(t, u, name, raw)
			for cut := 1; cut < len(raw); cut++ {
				n := 0
				err := u.tables[name](raw[:cut], func(*record) { n++ })
				if err == nil && n >= whole {
					t.Fatalf("%s %s: %d bytes of %d are %d records of %d, and no error", s.goos, name, cut, len(raw), n, whole)
				}
				if err != nil && !errors.As(err, new(*SizeError)) {
					t.Fatalf("%s %s: %d bytes of %d: %v", s.goos, name, cut, len(raw), err)
				}
			}
			if err := u.tables[name](append(slices.Clone(raw), 0, 0, 0, 0), func(*record) {}); s.goos != "freebsd" && !errors.As(err, new(*SizeError)) {
				t.Errorf("%s %s: 4 bytes more: %v", s.goos, name, err)
			}
		}
	}
}

func records(t testing.TB, u *Unix, name string, raw []byte) (n int) {
	t.Helper()
	if err := u.tables[name](raw, func(*record) { n++ }); err != nil {
		t.Fatal(err)
	}
	return n
}

// Records of another size are of another version: each says so.
func TestDecodeOtherVersion(t *testing.T) {
	for _, tt := range []struct {
		goos, dir, table string
		length           int // offset of a record's length
	}{
		{"freebsd", "freebsd", FreeBSDTCP, 0},
		{"freebsd", "freebsd", FreeBSDTCP, freebsdInpGenSize},
		{"freebsd", "freebsd", FreeBSDUnixStream, freebsdUnpGenSize},
		{"darwin", "darwin", DarwinTCP, 0},
		{"darwin", "darwin", DarwinTCP, darwinGenSize},
		{"darwin", "darwin", DarwinTCP, darwinGenSize + darwinInpcbSize},
		{"darwin", "darwin", DarwinUnixStream, darwinGenSize},
	} {
		tables := recorded(t, tt.dir, tt.table)
		tables[tt.table][tt.length] += 8
		_, _, err := system(t, tt.goos, "amd64").Decode(tables, Options{})
		if size := new(SizeError); !errors.As(err, &size) || size.Table != tt.goos+" "+tt.table {
			t.Errorf("%s at %d: %v", tt.table, tt.length, err)
		}
	}
	if _, _, err := system(t, "openbsd", "amd64").Decode(Tables{"kern.flie": nil}, Options{}); err == nil {
		t.Error("an unknown table: no error")
	}
	for _, s := range [][2]string{{"dragonfly", "amd64"}, {"aix", "ppc64"}, {"openbsd", "ppc64"}, {"linux", "amd64"}} {
		if _, err := UnixOf(s[0], s[1]); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// A recording of one process has its sockets, as before, and nothing of others.
func TestFilter(t *testing.T) {
	for _, s := range []struct {
		goos, dir string
		pid       int32
	}{
		{"freebsd", "freebsd", 101}, {"openbsd", "openbsd", 101}, {"netbsd", "netbsd", 102}, {"illumos", "illumos", 100}, {"darwin", "darwin", 100},
	} {
		u := system(t, s.goos, "amd64")
		all := withoutOthers(recorded(t, s.dir))
		want, _, err := u.Decode(all, Options{PID: s.pid})
		if err != nil {
			t.Fatal(err)
		}
		own, err := u.Filter(all, s.pid)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(slices.Sorted(maps.Keys(own)), slices.Sorted(maps.Keys(all))) {
			t.Errorf("%s: tables %v", s.goos, slices.Sorted(maps.Keys(own)))
		}
		rows, warnings, err := u.Decode(own, Options{})
		if warnings = slices.DeleteFunc(warnings, func(err error) bool { return err == ErrWithheld }); err != nil || len(warnings) > 0 || len(want) == 0 {
			t.Errorf("%s: %v, %v", s.goos, warnings, err)
		}
		check(t, s.goos, rows, format(want)...)
	}
}

func TestDarwinProcess(t *testing.T) {
	b := make([]byte, DarwinProcSize)
	copy(b[darwinProcComm:], "a name of 16 byt")
	b[darwinProcPID], b[darwinProcRUID], b[darwinProcStartSec], b[darwinProcStartUsec] = 7, 8, 9, 10
	p, err := DarwinProcess(b)
	if err != nil || p.PID != 7 || p.UID != 8 || p.Comm != "a name of 16 byt" || p.Start.UnixMicro() != 9_000_010 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := DarwinProcess(b[1:]); !errors.As(err, new(*SizeError)) {
		t.Errorf("a short one: %v", err)
	}
}

func TestFreeBSDProcess(t *testing.T) {
	for goarch, l := range freebsdProcs {
		b := make([]byte, l.size)
		b[0], b[1] = byte(l.size), byte(l.size>>8)
		b[l.pid], b[l.ruid], b[l.startSec], b[l.startUsec] = 7, 8, 9, 10
		copy(b[l.comm:], "nginx\x00rest")
		p, err := FreeBSDProcess(b, goarch)
		if err != nil || p.PID != 7 || p.UID != 8 || p.Comm != "nginx" || p.Start.UnixMicro() != 9_000_010 {
			t.Errorf("%s: %+v, %v", goarch, p, err)
		}
		if _, err := FreeBSDProcess(b[1:], goarch); !errors.As(err, new(*SizeError)) {
			t.Errorf("%s: a short one: %v", goarch, err)
		}
		b[0]++
		if _, err := FreeBSDProcess(b, goarch); !errors.As(err, new(*SizeError)) {
			t.Errorf("%s: another version: %v", goarch, err)
		}
	}
	if _, err := FreeBSDProcess(nil, "powerpc64"); !errors.As(err, new(*SizeError)) {
		t.Errorf("an unknown architecture: %v", err)
	}
}

func TestDarwinSockets(t *testing.T) {
	fds := []byte{3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0}
	if sockets, err := DarwinSockets(fds); err != nil || !slices.Equal(sockets, []int32{3, 5}) {
		t.Errorf("%v, %v", sockets, err)
	}
	if _, err := DarwinSockets(fds[1:]); !errors.As(err, new(*SizeError)) {
		t.Errorf("a short one: %v", err)
	}
}

// fuzzSystem feeds bytes to each table of a system. The tables never panic, and records
// are in order, whole, and within the table.
func fuzzSystem(f *testing.F, goos, goarch, dir string) {
	u := system(f, goos, goarch)
	names := slices.Sorted(maps.Keys(u.tables))
	for name, raw := range recorded(f, dir) {
		if i := slices.Index(names, name); i >= 0 {
			f.Add(byte(i), raw)
		}
	}
	f.Fuzz(func(t *testing.T, table byte, raw []byte) {
		name := names[int(table)%len(names)]
		last := 0
		err := u.tables[name](raw, func(r *record) {
			if r.off < last || r.end <= r.off || r.end > len(raw) {
				t.Errorf("%s: a record from %d to %d, after %d, of %d", name, r.off, r.end, last, len(raw))
			}
			last = r.end
			if r.isRow && r.row.Kind() == 0 && r.row.Family == conn.Unix {
				t.Errorf("%s: %+v", name, r.row)
			}
		})
		tables := Tables{name: raw}
		rows, _, decodeErr := u.Decode(tables, Options{Holders: true})
		if sizeErr := errors.As(err, new(*SizeError)); sizeErr != (decodeErr != nil) {
			t.Errorf("%s: %v, but decoded: %v", name, err, decodeErr)
		}
		if decodeErr != nil && rows != nil {
			t.Errorf("%s: rows beside %v", name, decodeErr)
		}
		own, err := u.Filter(tables, 100)
		if err == nil && len(own[name]) > len(raw) {
			t.Errorf("%s: %d bytes filtered from %d", name, len(own[name]), len(raw))
		}
	})
}

func FuzzDarwin(f *testing.F)  { fuzzSystem(f, "darwin", "arm64", "darwin") }
func FuzzFreeBSD(f *testing.F) { fuzzSystem(f, "freebsd", "amd64", "freebsd") }
func FuzzOpenBSD(f *testing.F) { fuzzSystem(f, "openbsd", "amd64", "openbsd") }
func FuzzNetBSD(f *testing.F)  { fuzzSystem(f, "netbsd", "amd64", "netbsd") }
func FuzzIllumos(f *testing.F) { fuzzSystem(f, "illumos", "amd64", "illumos") }
