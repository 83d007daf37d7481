package fallback

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// dirents returns what getdents64 says of a directory.
func dirents(t testing.TB, dir string) []byte {
	t.Helper()
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	b := make([]byte, 4<<10)
	n, err := unix.ReadDirent(int(d.Fd()), b)
	must(t, err)
	return b[:n]
}

// Entries that are cut short are an error, not names that end early.
func TestNextDirent(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/17", nil, 0o600))
	b := dirents(t, dir)
	names := make(map[string]bool)
	for rest := b; len(rest) > 0; {
		name, after, err := nextDirent(rest)
		must(t, err)
		for n := range len(rest) - len(after) {
			if name, _, err := nextDirent(rest[:n]); err == nil {
				t.Errorf("%q of the first %d bytes", name, n)
			}
		}
		names[string(name)] = true
		rest = after
	}
	if len(names) != 3 || !names["."] || !names[".."] || !names["17"] {
		t.Errorf("got %v", names)
	}
}

func TestSocketInode(t *testing.T) {
	for link, want := range map[string]uint64{
		"socket:[21303]":                 21303,
		"socket:[18446744073709551615]":  1<<64 - 1,
		"socket:[18446744073709551616]":  0,
		"socket:[213":                    0,
		"socket:[]":                      0,
		"socket:[x]":                     0,
		"socket:21303":                   0,
		"pipe:[21303]":                   0,
		"/tmp/socket:[21303]":            0,
		"socket:[21303] (deleted)":       0,
		"":                               0,
		"anon_inode:[eventpoll]":         0,
		"socket:[-1]":                    0,
		"socket:[0000000000000000000001": 0,
	} {
		if got := socketInode([]byte(link)); got != want {
			t.Errorf("socketInode(%q) = %d, want %d", link, got, want)
		}
	}
}

// dirent returns a struct linux_dirent64, with padding after the name.
func dirent(name string, padding int) []byte {
	b := make([]byte, 19, 64)
	b = append(append(b, name...), make([]byte, 1+padding)...)
	hostEndian.PutUint16(b[16:], uint16(len(b)))
	return b
}

func FuzzNextDirent(f *testing.F) {
	f.Add(slices.Concat(dirent(".", 0), dirent("..", 0), dirent("17", 3)))
	f.Add(dirent("a name without a NUL", 0)[:30])
	f.Add(dirent("3", 200)[:24])
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			name, rest, err := nextDirent(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) || bytes.IndexByte(name, 0) >= 0 || name[:len(name)+1][len(name)] != 0 {
				t.Fatalf("name %q, %d of %d bytes left", name, len(rest), len(b))
			}
			b = rest
		}
	})
}

func FuzzSocketInode(f *testing.F) {
	f.Add([]byte("socket:[21303]"))
	f.Add([]byte("socket:[21303"))
	f.Add([]byte("/dev/null"))
	f.Fuzz(func(t *testing.T, link []byte) {
		if socketInode(link) != 0 && (!bytes.HasPrefix(link, []byte("socket:[")) || link[len(link)-1] != ']') {
			t.Errorf("%q is a socket", link)
		}
	})
}
