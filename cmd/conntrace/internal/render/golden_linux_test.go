package render

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
)

// The golden files hold Linux's numbers of families and names of errors.

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; if the new output is right, run go test -update\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

func TestGoldenEvents(t *testing.T) {
	for _, tt := range []struct {
		file    string
		encoder interface {
			AppendHeader([]byte) []byte
			AppendEvent([]byte, *conn.Event) []byte
		}
	}{
		{"events.json", NewJSON()},
		{"events.txt", NewText(false, true)},
		{"events-ascii.txt", NewText(false, false)},
		{"events-color.txt", NewText(true, true)},
	} {
		out := tt.encoder.AppendHeader(nil)
		for _, ev := range events() {
			out = tt.encoder.AppendEvent(out, &ev)
		}
		golden(t, tt.file, out)
	}
}

func TestGoldenTable(t *testing.T) {
	for _, tt := range []struct {
		file  string
		table Table
	}{
		{"table.txt", Table{Unicode: true, NetNS: true}},
		{"table-100.txt", Table{Unicode: true, Width: 100}},
		{"table-80.txt", Table{Unicode: true, Width: 80}},
		{"table-80-ascii.txt", Table{Width: 80, NoHeader: true}},
		{"table-10.txt", Table{Unicode: true, Width: 10}}, // as narrow as it gets
	} {
		var out bytes.Buffer
		if err := tt.table.Write(&out, conns()); err != nil {
			t.Fatal(err)
		}
		golden(t, tt.file, out.Bytes())
	}
}

func TestGoldenRows(t *testing.T) {
	var ndjson []byte
	csv := AppendCSVHeader(nil)
	for _, c := range conns() {
		ndjson = append(AppendConnJSON(ndjson, &c), '\n')
		csv = AppendConnCSV(csv, &c)
	}
	golden(t, "conns.ndjson", ndjson)
	golden(t, "conns.csv", csv)
}
