package cgroup2

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
)

func TestFind(t *testing.T) {
	for _, tt := range []struct{ name, mountinfo, want string }{
		{"none", "22 1 0:20 / /proc rw,relatime - proc proc rw\n", ""},
		{"usual", "22 1 0:20 / /proc rw - proc proc rw\n28 22 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		{"beside version 1", "40 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		{"only a part", "41 31 0:38 /user.slice /mnt rw - cgroup2 cgroup2 rw\n", ""},
		{"a part first", "41 31 0:38 /a /mnt rw - cgroup2 cgroup2 rw\n42 31 0:38 / /c rw - cgroup2 cgroup2 rw\n", "/c"},
		{"blanks", "41 31 0:38 / /a\\040b\\134 rw - cgroup2 none rw\n", `/a b\`},
		{"garbage", "cgroup2 - cgroup2 \n - \n\n1 - cgroup2 x\n", ""},
	} {
		if got, err := find(strings.NewReader(tt.mountinfo)); err != nil || got != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestOpenRoot(t *testing.T) {
	testenv.Root(t)
	root, err := OpenRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(root, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Errorf("file system %#x, %v, want %#x", fs.Type, err, unix.CGROUP2_SUPER_MAGIC)
	}
}
