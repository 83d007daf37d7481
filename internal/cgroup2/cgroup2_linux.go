// Package cgroup2 finds the root of the cgroup hierarchy that BPF programs are
// attached to, wherever it is mounted.
package cgroup2

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/mount"
)

// OpenRoot returns a descriptor of the root: that of the calling process's cgroup
// namespace.
func OpenRoot() (int, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return -1, err
	}
	defer f.Close()
	where, err := find(f)
	if err != nil {
		return -1, err
	}
	if where == "" {
		return mount.Detached("cgroup2")
	}
	root, err := unix.Open(where, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: where, Err: err}
	}
	return root, nil
}

// find returns where mountinfo (proc_pid_mountinfo(5)) has the whole hierarchy; ""
// if it has it nowhere.
func find(mountinfo io.Reader) (string, error) {
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		place, filesystem, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(place)
		if !ok || len(fields) < 5 || !strings.HasPrefix(filesystem, "cgroup2 ") {
			continue
		}
		if root, where := fields[3], fields[4]; root == "/" {
			return unescape(where), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read mountinfo: %w", err)
	}
	return "", nil
}

// unescape undoes what show_mountinfo() does to blanks.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// InitialNamespace reports whether the calling process is in the first cgroup
// namespace, whose root is that of all.
func InitialNamespace() bool {
	const initial = 0xEFFFFFFB // include/linux/proc_ns.h, PROC_CGROUP_INIT_INO
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/cgroup", &st) == nil && st.Ino == initial
}
