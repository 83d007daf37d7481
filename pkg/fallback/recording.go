package fallback

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/pkg/conn"
)

// A Recording is what a system said of its sockets, as it said it, with the rows that
// were made of that. Decoders are tested with recordings of systems that are not at
// hand. It is kept in a folder: manifest.json, rows.json, and a file NAME.raw for each
// table.
type Recording struct {
	Manifest Manifest
	tables   rawtable.Tables
}

// A Manifest says where a recording comes from.
type Manifest struct {
	OS        string               `json:"os"`         // runtime.GOOS
	Arch      string               `json:"arch"`       // runtime.GOARCH
	Release   string               `json:"release"`    // of the kernel
	ByteOrder string               `json:"byte_order"` // of the machine: little-endian or big-endian
	Conntrace string               `json:"conntrace"`  // version
	Time      time.Time            `json:"time"`       // when it was made
	PID       int32                `json:"pid"`        // only sockets of this process; 0: all
	Tables    map[string]TableFile `json:"tables"`     // by name
}

// A TableFile describes the file of a table.
type TableFile struct {
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

const (
	manifestFile = "manifest.json"
	rowsFile     = "rows.json"
	rawSuffix    = ".raw"
)

// Record asks the system for the sockets of the process pid, or of all if pid is 0,
// in every way that it knows. Of the raw tables it keeps nothing about other
// processes then. version is that of the program. The error wraps
// [errors.ErrUnsupported] on a system that has no source.
func Record(ctx context.Context, pid int32, version string) (*Recording, error) {
	now := time.Now()
	tables, err := rawTables(ctx, pid)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	r := &Recording{tables: tables, Manifest: Manifest{
		OS: runtime.GOOS, Arch: runtime.GOARCH, Release: sysinfo.Read().Release, ByteOrder: byteOrder(),
		Conntrace: version, Time: now.UTC().Truncate(time.Second), PID: pid, Tables: make(map[string]TableFile),
	}}
	for name, raw := range tables {
		r.Manifest.Tables[name] = describeTable(raw)
	}
	return r, nil
}

// ReadRecording reads the recording in a folder.
func ReadRecording(dir string) (*Recording, error) {
	b, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return nil, err
	}
	r := &Recording{tables: make(rawtable.Tables)}
	if err := json.Unmarshal(b, &r.Manifest); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, manifestFile), err)
	}
	for name, want := range r.Manifest.Tables {
		file := filepath.Join(dir, name+rawSuffix)
		if filepath.Base(file) != name+rawSuffix {
			return nil, fmt.Errorf("%s: %q is no name of a table", filepath.Join(dir, manifestFile), name)
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if got := describeTable(raw); got != want {
			return nil, fmt.Errorf("%s: not the file that was recorded: %d bytes, SHA-256 %.8s…", file, got.Bytes, got.SHA256)
		}
		r.tables[name] = raw
	}
	return r, nil
}

// Write writes the recording to a folder, which it makes. The folder must not have
// files yet.
func (r *Recording) Write(dir string) error {
	rows, err := r.Rows()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if files, err := os.ReadDir(dir); err != nil {
		return err
	} else if len(files) > 0 {
		return fmt.Errorf("%s has files in it: choose a new folder: %w", dir, fs.ErrExist)
	}
	manifest, err := json.MarshalIndent(r.Manifest, "", "\t")
	if err != nil {
		return err
	}
	files := map[string][]byte{manifestFile: append(manifest, '\n'), rowsFile: rows}
	for name, raw := range r.tables {
		files[name+rawSuffix] = raw
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o644); err != nil {
			return err
		}
	}
	return nil
}

// A recordedRow is a row as rows.json has it. Numbers that differ from system to system
// have names here.
type recordedRow struct {
	Family string  `json:"family"`
	Type   string  `json:"type"`
	Laddr  *string `json:"laddr"` // quoted as in Go; null: none
	Raddr  *string `json:"raddr"`
	Status string  `json:"status"`
	PID    *int32  `json:"pid"` // null: unknown
	FD     *int32  `json:"fd"`
}

// Rows decodes the tables and returns the rows as JSON, sorted: an object with an array
// for each source that they are from. Any system can decode the recordings of another
// one with the same byte order. A table that is not understood is an error, and so is
// what would be a warning otherwise.
func (r *Recording) Rows() ([]byte, error) {
	bySource, err := r.decode()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	open := "{\n"
	for _, source := range slices.Sorted(maps.Keys(bySource)) {
		var lines [][]byte
		for i := range bySource[source] {
			line, err := json.Marshal(newRecordedRow(&bySource[source][i]))
			if err != nil {
				return nil, err
			}
			lines = append(lines, line)
		}
		slices.SortFunc(lines, bytes.Compare)
		fmt.Fprintf(&out, "%s%q: [\n%s\n]", open, source, bytes.Join(lines, []byte(",\n")))
		open = ",\n"
	}
	out.WriteString("\n}\n")
	return out.Bytes(), nil
}

func newRecordedRow(c *conn.Conn) recordedRow {
	row := recordedRow{Family: c.Family.String(), Type: c.Type.String(), Laddr: quoteAddr(c.Laddr), Raddr: quoteAddr(c.Raddr), Status: c.Status.String()}
	if c.PID != 0 {
		row.PID = &c.PID
	}
	if c.FD >= 0 {
		row.FD = &c.FD
	}
	return row
}

func quoteAddr(a conn.Addr) *string {
	if !a.IsValid() {
		return nil
	}
	quoted := strconv.Quote(a.String())
	quoted = quoted[1 : len(quoted)-1]
	return &quoted
}

// decode returns the rows by source.
func (r *Recording) decode() (map[string][]conn.Conn, error) {
	if r.Manifest.ByteOrder != byteOrder() {
		return nil, fmt.Errorf("a recording of a %s machine: %w on this one", r.Manifest.ByteOrder, errors.ErrUnsupported)
	}
	switch r.Manifest.OS {
	case "linux":
		return decodeLinux(r.tables)
	case "windows":
		rows, warnings, err := rawtable.DecodeWindows(r.tables)
		return map[string][]conn.Conn{"native": rows}, errors.Join(append(warnings, err)...)
	}
	system, err := rawtable.UnixOf(r.Manifest.OS, r.Manifest.Arch)
	if err != nil {
		return nil, err
	}
	rows, warnings, err := system.Decode(r.tables, rawtable.Options{})
	// That somebody else's sockets are missing is what a recording is for.
	warnings = slices.DeleteFunc(warnings, func(err error) bool { return err == rawtable.ErrWithheld })
	return map[string][]conn.Conn{"native": rows}, errors.Join(append(warnings, err)...)
}

// The tables of a recording of Linux: the answers to sock_diag dumps, netlink messages
// as received; files in /proc/net; and a line "PID FD INODE" for each descriptor of a
// socket.
const (
	recordedDiag = "sock_diag-" // and the name of the file in /proc/net
	recordedProc = "proc-net-"
	recordedFDs  = "proc-fd"
)

// linuxTables are the tables of Linux by their files in /proc/net.
var linuxTables = []struct {
	file   string
	family conn.Family
	typ    conn.Type
}{
	{"tcp", conn.Inet, conn.Stream},
	{"tcp6", conn.Inet6, conn.Stream},
	{"udp", conn.Inet, conn.Datagram},
	{"udp6", conn.Inet6, conn.Datagram},
	{"unix", conn.Unix, 0},
}

func decodeLinux(tables rawtable.Tables) (map[string][]conn.Conn, error) {
	var netlink, procfs Snapshot
	for _, t := range linuxTables {
		for b := tables[recordedDiag+t.file]; len(b) > 0; {
			var m message
			var err error
			if m, b, err = nextMessage(b); err != nil {
				return nil, fmt.Errorf("%s%s: %w", recordedDiag, t.file, err)
			}
			c := conn.Conn{Type: t.typ}
			if t.family == conn.Unix {
				_, err = decodeUnixDiag(m.body, &c)
			} else {
				err = decodeInetDiag(m.body, &c)
			}
			if err != nil {
				return nil, fmt.Errorf("%s%s: %w", recordedDiag, t.file, err)
			}
			netlink.Conns = append(netlink.Conns, c)
		}
		text := bytes.NewReader(tables[recordedProc+t.file])
		var err error
		if t.family == conn.Unix {
			err = parseUnixTable(text, t.file, &procfs)
		} else {
			err = parseInetTable(text, t.file, t.family, t.typ, &procfs)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := errors.Join(procfs.Warnings...); err != nil {
		return nil, err
	}
	holdings, err := parseHoldings(tables[recordedFDs])
	if err != nil {
		return nil, err
	}
	var index holderIndex
	rows := make(map[string][]conn.Conn)
	for name, conns := range map[string][]conn.Conn{"netlink": netlink.Conns, "procfs": procfs.Conns} {
		index.build(holdings, 0)
		rows[name] = join(conns, &index, Query{})
	}
	return rows, nil
}

// appendHolding appends the line of a descriptor to a table of them.
func appendHolding(table []byte, h Holding) []byte {
	return fmt.Appendf(table, "%d %d %d\n", h.PID, h.FD, h.Inode)
}

// parseHoldings parses a table of descriptors and returns them ascending by (PID, FD).
func parseHoldings(table []byte) (holdings []Holding, err error) {
	for line := range bytes.Lines(table) {
		f := fieldReader{rest: bytes.TrimSuffix(line, []byte("\n"))}
		var h Holding
		h.PID, h.FD, h.Inode = int32(f.decimal(31)), int32(f.decimal(31)), f.decimal(64)
		if f.bad || len(f.rest) > 0 {
			return nil, fmt.Errorf("%s: %w: %.100q", recordedFDs, errMalformed, line)
		}
		holdings = append(holdings, h)
	}
	slices.SortFunc(holdings, func(a, b Holding) int { return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.FD, b.FD)) })
	return holdings, nil
}

func describeTable(raw []byte) TableFile {
	sum := sha256.Sum256(raw)
	return TableFile{Bytes: len(raw), SHA256: hex.EncodeToString(sum[:])}
}

func byteOrder() string {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return "little-endian"
	}
	return "big-endian"
}
