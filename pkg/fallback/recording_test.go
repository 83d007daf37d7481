package fallback

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestReplay decodes every recording that there is, of any system, and must get the
// rows that were recorded. To add one, put the folder that 'conntrace record' made into
// /testdata/recordings, once its rows are right.
func TestReplay(t *testing.T) {
	dirs, err := filepath.Glob("../../testdata/recordings/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			r, err := ReadRecording(dir)
			if err != nil {
				t.Fatal(err)
			}
			if r.Manifest.ByteOrder != byteOrder() {
				t.Skipf("recorded on a %s machine", r.Manifest.ByteOrder)
			}
			want, err := os.ReadFile(filepath.Join(dir, rowsFile))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := r.Rows(); err != nil || string(got) != string(want) {
				t.Errorf("%v: rows\n%s\nwant\n%s", err, got, want)
			}
		})
	}
}

// recordSelf records the sockets of this process and returns the folder.
func recordSelf(t *testing.T) string {
	t.Helper()
	r, err := Record(context.Background(), int32(os.Getpid()), "test")
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "new")
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	if err := r.Write(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("written twice: %v", err)
	}
	return dir
}

// A recording that was changed is not taken for one.
func TestReadRecordingErrors(t *testing.T) {
	dir := recordSelf(t)
	good, err := ReadRecording(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, want string
		spoil      func(m *Manifest)
	}{
		{"name", "is no name of a table", func(m *Manifest) { m.Tables["../rows"] = TableFile{} }},
		{"absent", "nothing.raw", func(m *Manifest) { m.Tables["nothing"] = TableFile{} }},
		{"byte order", "machine", func(m *Manifest) { m.ByteOrder = "middle-endian" }},
		{"system", "not known", func(m *Manifest) { m.OS = "plan9" }},
	} {
		manifest := good.Manifest
		manifest.Tables = make(map[string]TableFile)
		for name, file := range good.Manifest.Tables {
			manifest.Tables[name] = file
		}
		tt.spoil(&manifest)
		writeManifest(t, dir, manifest)
		r, err := ReadRecording(dir)
		if err == nil {
			_, err = r.Rows()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	writeManifest(t, dir, good.Manifest)
	for name := range good.Manifest.Tables {
		file := filepath.Join(dir, name+rawSuffix)
		if err := os.WriteFile(file, []byte("something else"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ReadRecording(dir); err == nil || !strings.Contains(err.Error(), "not the file that was recorded") {
		t.Errorf("changed files: %v", err)
	}
}

func writeManifest(t *testing.T, dir string, m Manifest) {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, manifestFile), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseHoldings(f *testing.F) {
	f.Add([]byte("1 2 3\n4 5 18446744073709551615\n"))
	f.Add([]byte("1 2\n"))
	f.Add([]byte("2147483648 0 1\n"))
	f.Fuzz(func(t *testing.T, table []byte) {
		holdings, err := parseHoldings(table)
		if err != nil {
			return
		}
		var again []byte
		for _, h := range holdings {
			again = appendHolding(again, h)
		}
		if back, err := parseHoldings(again); err != nil || !slices.Equal(back, holdings) {
			t.Errorf("%q: %+v, then %+v, %v", table, holdings, back, err)
		}
	})
}
