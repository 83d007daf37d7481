package stdio

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func TestNoTerminal(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if IsTerminal(file) || Color(file) || Width(file) != 0 {
		t.Error("a file is a terminal")
	}
	if IsTerminal(&bytes.Buffer{}) || Width(&bytes.Buffer{}) != 0 {
		t.Error("a buffer is a terminal")
	}
	OnClosed(file, func() { t.Error("a file has lost its reader") })
}

func TestUnicode(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("always Unicode")
	}
	for _, tt := range []struct {
		all, ctype, lang string
		want             bool
	}{
		{"", "", "", false},
		{"", "", "en_US.UTF-8", true},
		{"", "", "C.utf8", true},
		{"", "C", "en_US.UTF-8", false},
		{"C.UTF-8", "C", "C", true},
		{"POSIX", "", "en_US.UTF-8", false},
	} {
		t.Setenv("LC_ALL", tt.all)
		t.Setenv("LC_CTYPE", tt.ctype)
		t.Setenv("LANG", tt.lang)
		if got := Unicode(); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

func TestIsClosed(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	if _, err := w.Write([]byte("x")); !IsClosed(err) {
		t.Errorf("a write to a closed pipe: %v", err)
	}
	if IsClosed(nil) || IsClosed(os.ErrClosed) {
		t.Error("any error is one of a closed pipe")
	}
}
