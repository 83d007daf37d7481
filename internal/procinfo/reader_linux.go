package procinfo

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// tick is what the kernel counts start times in for user space: USER_HZ is 100
// on every architecture that Go runs on.
const tick = 10_000_000 // ns

// A Reader looks up processes. Its methods may be called by several goroutines
// at once.
type Reader struct {
	root       string    // of procfs
	boot       time.Time // when the machine was started
	cgroupDir  string    // where cgroup2 is mounted; "": nowhere
	cgroupRoot string    // the cgroup that is seen there
}

// New returns a Reader of the procfs that is mounted at root.
func New(root string) (*Reader, error) {
	fs, err := procfs.NewFS(root)
	if err != nil {
		return nil, err
	}
	stat, err := fs.Stat()
	if err != nil {
		return nil, fmt.Errorf("boot time: %w", err)
	}
	if stat.BootTime == 0 {
		return nil, fmt.Errorf("%s/stat: no boot time", root)
	}
	r := &Reader{root: root, boot: time.Unix(int64(stat.BootTime), 0)}
	// Without mountinfo cgroups are unknown, as they are without cgroup2.
	mounts, _ := fs.GetMounts()
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			r.cgroupDir, r.cgroupRoot = unescape(m.MountPoint), unescape(m.Root)
			break
		}
	}
	return r, nil
}

// FromBoot returns the time of day that a process was started at, from the
// nanoseconds between boot and that moment (task_struct.start_boottime). It is
// exactly the time that [Reader.Lookup] finds for the same process.
//
// That is the sum of the boot time, which the kernel tells in whole seconds and
// rounds down (btime in /proc/stat), and of the clock ticks since. ps and psutil
// say the same; it can be up to a second early, and is the same every time the
// process is looked up unless the clock is set in between.
func (r *Reader) FromBoot(ns uint64) time.Time {
	return r.boot.Add(time.Duration(ns / tick * tick))
}

// Lookup returns what can be seen of the process pid. Only the start time and
// the command name are always there: the rest is left unknown where it may not
// be read. The error wraps [conn.ErrNoSuchProcess] if there is no such process;
// a thread that does not lead its process is none.
func (r *Reader) Lookup(pid int32) (*conn.Process, error) {
	// The directory is of one process for good: once that is gone, reading in it
	// fails, even if the kernel has given the pid to another.
	dir, err := unix.Open(r.path(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, lookupError(pid, err)
	}
	defer unix.Close(dir)

	var buf [4096]byte
	b, err := readAt(dir, "stat", buf[:])
	if err != nil {
		return nil, lookupError(pid, err)
	}
	stat, err := parseStat(b)
	if err != nil {
		return nil, fmt.Errorf("process %d: stat: %w", pid, err)
	}
	p := &conn.Process{
		PID:   pid,
		Start: r.FromBoot(stat.start * tick),
		Comm:  string(stat.comm),
	}
	if b, err = readAt(dir, "status", buf[:]); err == nil {
		tgid, uid, err := parseStatus(b)
		if err == nil && tgid != pid {
			// The kernel hides /proc/TID of other threads, but opens it.
			return nil, lookupError(pid, unix.ESRCH)
		}
		p.UID, p.HasUID = uid, err == nil
	}
	p.Executable = readlinkAt(dir, "exe", buf[:])
	if b, err = readAt(dir, "cgroup", buf[:]); err == nil {
		p.Cgroup = r.cgroupID(parseCgroup(b))
	}
	return p, nil
}

// Executable returns the path of what the process pid executes; "" if that is
// unknown. " (deleted)" is at its end if the file has been removed since.
func (r *Reader) Executable(pid int32) string {
	var buf [4096]byte
	return readlinkAt(unix.AT_FDCWD, r.path(pid)+"/exe", buf[:])
}

func (r *Reader) path(pid int32) string {
	return r.root + "/" + strconv.Itoa(int(pid))
}

// cgroupID returns the ID of the cgroup that /proc/PID/cgroup calls name: it is
// the inode number of its directory (cgroup_id in include/linux/cgroup.h).
func (r *Reader) cgroupID(name []byte) uint64 {
	if r.cgroupDir == "" || len(name) == 0 {
		return 0
	}
	// A container may see only the part of the tree below its own cgroup; the name of
	// any other one starts with "/..", or with another directory than what it sees.
	below, ok := strings.CutPrefix(string(name), strings.TrimSuffix(r.cgroupRoot, "/"))
	if !ok || strings.HasPrefix(below, "/..") {
		return 0
	}
	var st unix.Stat_t
	if unix.Stat(path.Join(r.cgroupDir, below), &st) != nil {
		return 0
	}
	return st.Ino
}

func lookupError(pid int32, err error) error {
	if err == unix.ENOENT || err == unix.ESRCH {
		err = conn.ErrNoSuchProcess
	}
	return fmt.Errorf("process %d: %w", pid, err)
}

// readAt reads the file name in dir, as much as fits into buf.
func readAt(dir int, name string, buf []byte) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n := 0
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return buf[:n], nil
}

// readlinkAt returns the target of the link name in dir, "" if it cannot be had
// whole.
func readlinkAt(dir int, name string, buf []byte) string {
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil || n == len(buf) {
		return ""
	}
	return string(buf[:n])
}
