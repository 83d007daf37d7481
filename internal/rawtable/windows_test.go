package rawtable

import (
	"debug/pe"
	"encoding/binary"
	"errors"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
)

var windowsDecoders = map[string]func([]conn.Conn, []byte) ([]conn.Conn, error){
	"tcp4": AppendWindowsTCP4,
	"tcp6": AppendWindowsTCP6,
	"udp4": AppendWindowsUDP4,
	"udp6": AppendWindowsUDP6,
}

// windowsRow returns a row as Windows has them.
func windowsRow(f conn.Family, typ conn.Type, laddr, raddr conn.Addr, s conn.Status, pid int32) conn.Conn {
	return conn.Conn{FD: -1, Family: f, Type: typ, Laddr: laddr, Raddr: raddr, Status: s, PID: pid}
}

// windowsFixture is what testdata/windows.c must be decoded to.
func windowsFixture() map[string][]conn.Conn {
	exact := func(s string) conn.Addr {
		ap := netip.MustParseAddrPort(s)
		if ap.Addr().Is4() {
			return conn.AddrIPv4Exact(ap.Addr().As4(), ap.Port())
		}
		return conn.AddrIPv6Exact(ap.Addr().As16(), ap.Port())
	}
	none := conn.Addr{}
	return map[string][]conn.Conn{
		"tcp4": {
			windowsRow(conn.Inet, conn.Stream, exact("192.0.2.1:49152"), exact("198.51.100.2:443"), conn.StatusEstablished, 4321),
			windowsRow(conn.Inet, conn.Stream, exact("0.0.0.0:80"), none, conn.StatusListen, 4),
			windowsRow(conn.Inet, conn.Stream, exact("192.0.2.1:49153"), exact("198.51.100.2:443"), conn.StatusTimeWait, 0),
			windowsRow(conn.Inet, conn.Stream, none, none, conn.StatusClose, 7),
		},
		"tcp6": {
			windowsRow(conn.Inet6, conn.Stream, exact("[2001:db8::1]:50000"), exact("[2001:db8::2]:8443"), conn.StatusDeleteTCB, 1234),
			windowsRow(conn.Inet6, conn.Stream, exact("[::]:445"), none, conn.StatusListen, 4),
		},
		"udp4": {
			windowsRow(conn.Inet, conn.Datagram, exact("127.0.0.1:53"), none, conn.StatusNone, 99),
			windowsRow(conn.Inet, conn.Datagram, exact("10.0.0.1:0"), none, conn.StatusNone, 100),
		},
		"udp6": {
			windowsRow(conn.Inet6, conn.Datagram, exact("[fe80::9]:5353"), none, conn.StatusNone, 77),
			windowsRow(conn.Inet6, conn.Datagram, exact("[::]:546"), none, conn.StatusNone, 78),
		},
	}
}

// TestWindowsLayout decodes tables that a C compiler laid out, for each architecture
// of Windows that Go has.
func TestWindowsLayout(t *testing.T) {
	clang, err := exec.LookPath("clang-14")
	if err != nil {
		testenv.Missing(t, "clang-14")
	}
	for _, arch := range []string{"x86_64", "i686", "aarch64"} {
		t.Run(arch, func(t *testing.T) {
			object := filepath.Join(t.TempDir(), "windows.obj")
			out, err := exec.Command(clang, "-target", arch+"-pc-windows-msvc", "-Werror", "-c", "-o", object, "testdata/windows.c").CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			raw := peSymbols(t, object)
			for name, want := range windowsFixture() {
				got, err := windowsDecoders[name](nil, raw[name])
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				equalConns(t, name, got, want)
			}
		})
	}
}

// peSymbols returns the bytes from each symbol of an object file to the end of its
// section.
func peSymbols(t *testing.T, object string) map[string][]byte {
	t.Helper()
	f, err := pe.Open(object)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols := make(map[string][]byte)
	for _, s := range f.Symbols {
		if s.SectionNumber < 1 {
			continue
		}
		data, err := f.Sections[s.SectionNumber-1].Data()
		if err != nil {
			t.Fatal(err)
		}
		// On 386, C names begin with an underscore.
		symbols[strings.TrimPrefix(s.Name, "_")] = data[s.Value:]
	}
	return symbols
}

func equalConns(t *testing.T, what string, got, want []conn.Conn) {
	t.Helper()
	same := func(a, b conn.Conn) bool {
		return a.FD == b.FD && a.Family == b.Family && a.Type == b.Type && a.Laddr == b.Laddr && a.Raddr == b.Raddr &&
			a.Status == b.Status && a.PID == b.PID && a.Known == b.Known
	}
	if !slices.EqualFunc(got, want, same) {
		t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

// windowsTCP4Row returns a row in a state.
func windowsTCP4Row(state uint32) []byte {
	row := make([]byte, 24)
	binary.LittleEndian.PutUint32(row, state)
	copy(row[4:], []byte{127, 0, 0, 1, 0, 80})
	return row
}

// windowsRaw returns a table of rows.
func windowsRaw(rows ...[]byte) []byte {
	return slices.Concat(binary.LittleEndian.AppendUint32(nil, uint32(len(rows))), slices.Concat(rows...))
}

// TestWindowsStates: all states are known, and rows in others are left out, counted,
// and cost no other row.
func TestWindowsStates(t *testing.T) {
	for state, want := range map[uint32]conn.Status{
		1: conn.StatusClose, 2: conn.StatusListen, 3: conn.StatusSynSent, 4: conn.StatusSynRecv, 5: conn.StatusEstablished,
		6: conn.StatusFinWait1, 7: conn.StatusFinWait2, 8: conn.StatusCloseWait, 9: conn.StatusClosing, 10: conn.StatusLastAck,
		11: conn.StatusTimeWait, 12: conn.StatusDeleteTCB,
	} {
		got, err := AppendWindowsTCP4(nil, windowsRaw(windowsTCP4Row(state)))
		if err != nil || len(got) != 1 || got[0].Status != want {
			t.Errorf("state %d: %+v, %v, want %s", state, got, err, want)
		}
	}
	got, err := AppendWindowsTCP4(nil, windowsRaw(windowsTCP4Row(0), windowsTCP4Row(5), windowsTCP4Row(1<<31), windowsTCP4Row(13)))
	if len(got) != 1 || got[0].Status != conn.StatusEstablished {
		t.Errorf("rows beside unknown states: %+v", got)
	}
	if e, ok := errors.AsType[*StateError](err); !ok || *e != (StateError{Table: "windows tcp4", State: 0, Rows: 3}) {
		t.Errorf("unknown states: %v", err)
	}
}

// TestWindowsSize: a table that is cut short gives an error and no row; one with room
// behind its rows is whole.
func TestWindowsSize(t *testing.T) {
	before := []conn.Conn{{PID: 1}}
	raw := windowsRaw(windowsTCP4Row(5), windowsTCP4Row(5))
	for n := range raw {
		got, err := AppendWindowsTCP4(before, raw[:n])
		if e, ok := errors.AsType[*SizeError](err); !ok || e.Got != n || len(got) != 1 {
			t.Fatalf("%d of %d bytes: %d rows, %v", n, len(raw), len(got), err)
		}
	}
	if got, err := AppendWindowsTCP4(before, append(raw, make([]byte, 100)...)); err != nil || len(got) != 3 {
		t.Errorf("with room behind: %d rows, %v", len(got), err)
	}
	if got, err := AppendWindowsTCP4(nil, []byte{0xff, 0xff, 0xff, 0xff, 0}); err == nil || got != nil {
		t.Errorf("four billion rows in five bytes: %d rows, %v", len(got), err)
	}
}

// TestWindowsPID: a number that is no process ID is unknown, not negative.
func TestWindowsPID(t *testing.T) {
	row := windowsTCP4Row(5)
	binary.LittleEndian.PutUint32(row[20:], 1<<31)
	if got, err := AppendWindowsTCP4(nil, windowsRaw(row)); err != nil || len(got) != 1 || got[0].PID != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzWindowsTCP4(f *testing.F) { fuzzWindows(f, &windowsTCP4) }
func FuzzWindowsTCP6(f *testing.F) { fuzzWindows(f, &windowsTCP6) }
func FuzzWindowsUDP4(f *testing.F) { fuzzWindows(f, &windowsUDP4) }
func FuzzWindowsUDP6(f *testing.F) { fuzzWindows(f, &windowsUDP6) }

// fuzzWindows: whatever the bytes, each row that they hold is decoded or told of.
func fuzzWindows(f *testing.F, table *windowsTable) {
	row := func(b byte) []byte { return slices.Repeat([]byte{b}, table.size) }
	listener := make([]byte, table.size)
	if table.typ == conn.Stream {
		listener[table.state] = 2
	}
	for _, raw := range [][]byte{
		nil, {1, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, windowsRaw(), windowsRaw(row(0)), windowsRaw(row(5), row(0xff)),
		windowsRaw(listener, row(1)), append(windowsRaw(listener), 1, 2, 3),
	} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := conn.Conn{PID: 7}
		rows, err := table.append([]conn.Conn{before}, raw)
		if len(rows) == 0 || rows[0].PID != before.PID {
			t.Fatal("what was there before is lost")
		}
		rows = rows[1:]
		if _, ok := errors.AsType[*SizeError](err); ok {
			if len(rows) != 0 {
				t.Fatalf("%d rows and %v", len(rows), err)
			}
			return
		}
		leftOut := 0
		if e, ok := errors.AsType[*StateError](err); ok {
			leftOut = e.Rows
		} else if err != nil {
			t.Fatalf("an error without a name: %v", err)
		}
		if n := int(binary.LittleEndian.Uint32(raw)); len(rows)+leftOut != n {
			t.Fatalf("%d rows and %d left out of %d", len(rows), leftOut, n)
		}
		for i := range rows {
			c := &rows[i]
			if c.FD != -1 || c.PID < 0 || c.Family != table.family || c.Type != table.typ || (c.Status == conn.StatusNone) != (c.Type == conn.Datagram) ||
				c.Raddr.IsValid() && (c.Status == conn.StatusListen || c.Type == conn.Datagram) {
				t.Fatalf("%+v", c)
			}
		}
	})
}

func BenchmarkWindowsTCP6(b *testing.B) {
	row := make([]byte, windowsTCP6.size)
	row[windowsTCP6.state], row[windowsTCP6.laddr], row[windowsTCP6.raddr] = 5, 1, 2
	raw := windowsRaw(slices.Repeat([][]byte{row}, 20_000)...)
	var dst []conn.Conn
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if dst, err = AppendWindowsTCP6(dst[:0], raw); err != nil {
			b.Fatal(err)
		}
	}
}
