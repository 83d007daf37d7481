package render

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/conntrace/conntrace/pkg/conn"
)

// TestTableFits checks that rows are as wide as the terminal at most, as long as
// it has room for the narrowest table.
func TestTableFits(t *testing.T) {
	for width := 78; width <= 200; width++ {
		var out bytes.Buffer
		if err := (Table{Width: width, Unicode: true}).Write(&out, conns()); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Fatalf("%d columns in a terminal of %d: %s", n, width, line)
			}
		}
	}
}

func TestTableReportsWriteErrors(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	if err := (Table{}).Write(w, conns()); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v, want %v", err, io.ErrClosedPipe)
	}
}

// TestCSV reads the rows with encoding/csv: a line each, with as many fields.
func TestCSV(t *testing.T) {
	text := AppendCSVHeader(nil)
	rows := conns()
	for i := range rows {
		text = AppendConnCSV(text, &rows[i])
	}
	if lines := bytes.Count(text, []byte("\n")); lines != len(rows)+1 {
		t.Errorf("%d lines for a header and %d rows", lines, len(rows))
	}
	records, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := records[2][3], `/run/a b\n\x1b[31m\xff"é,\\`; got != want {
		t.Errorf("path %q, want %q", got, want)
	}
}

func BenchmarkTable(b *testing.B) {
	rows := make([]conn.Conn, 20_000)
	for i := range rows {
		rows[i] = tcp(conn.StatusEstablished, fmt.Sprintf("127.0.0.1:%d", 1+i*7919%60000), fmt.Sprintf("10.0.0.1:%d", i+1), int32(i+1), "nginx")
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := (Table{}).Write(io.Discard, rows); err != nil {
			b.Fatal(err)
		}
	}
}
