package fallback

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// callerDir is the directory of the calling thread, which may be in another
// network namespace than its process.
const callerDir = "/proc/thread-self"

// A Namespace is a network namespace.
type Namespace struct {
	dir     string   // directory in procfs of a process, or thread, that is in it
	others  []string // those of further processes
	inode   uint32   // what tells it from others; 0: unknown
	foreign bool     // not the one that is read unless a query asks for all
	enter   bool     // not the one that the caller is in
}

// errMoved says that the process by which a namespace is known is in another one by
// now.
var errMoved = errors.New("its process has moved to another one")

// left reports whether err, of reading a namespace, says that the process by which it
// is known has left it, as nearly all do by ending.
func left(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, errMoved)
}

// netnsOf returns the namespace that the process with the directory dir is in.
func netnsOf(dir string) (Namespace, error) {
	name := dir + "/ns/net"
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return Namespace{dir: dir}, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return Namespace{dir: dir, inode: uint32(st.Ino)}, nil
}

// otherNamespaces returns every namespace but home that a process in root is in. A
// warning in s says if some could not be looked at.
func otherNamespaces(root string, home Namespace, s *Snapshot) ([]Namespace, error) {
	proc, err := openProcFDs(root)
	if err != nil {
		return nil, err
	}
	defer proc.close()
	pids, err := proc.pids()
	if err != nil {
		return nil, err
	}
	var others []Namespace
	index := make(map[uint32]int) // of others, by inode
	denied := 0
	for _, pid := range pids {
		ns, err := netnsOf(root + "/" + strconv.Itoa(int(pid)))
		if errors.Is(err, fs.ErrPermission) {
			denied++
		}
		if err != nil || ns.inode == home.inode {
			continue
		}
		if i, ok := index[ns.inode]; ok {
			others[i].others = append(others[i].others, ns.dir)
			continue
		}
		index[ns.inode] = len(others)
		ns.foreign, ns.enter = true, true
		others = append(others, ns)
	}
	if denied > 0 {
		s.Warnings = append(s.Warnings, fmt.Errorf("network namespaces of %d processes: %w", denied, fs.ErrPermission))
	}
	return others, nil
}

// rootNamespace returns the namespace that the procfs at root has the view of: the
// caller's for /proc, that of process 1 for any other, such as the host's in a
// container. It fails if that cannot be told, or not be entered.
func rootNamespace(root string) (Namespace, error) {
	if isOwnProc(root) {
		return CallerNamespace(), nil
	}
	ns, err := netnsOf(root + "/1")
	if err != nil {
		return ns, err
	}
	ns.enter = ns.inode != CallerNamespace().inode
	return ns, ns.Do(func() error { return nil })
}

// isOwnProc reports whether root is where procfs is mounted for this process.
func isOwnProc(root string) bool { return filepath.Clean(root) == "/proc" }

// CallerNamespace returns the namespace of the calling thread, whose number is
// unknown where procfs is not there.
func CallerNamespace() Namespace {
	ns, _ := netnsOf(callerDir)
	return ns
}

// Inode returns the number that tells ns from others, as in /proc/PID/ns/net; 0 if
// it is unknown.
func (ns Namespace) Inode() uint32 { return ns.inode }

// Do calls f on a thread that is in ns.
func (ns Namespace) Do(f func() error) error {
	if !ns.enter {
		return f()
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		back, err := visitNetNS(ns, f)
		if back {
			runtime.UnlockOSThread()
		} // else the runtime ends the thread with the goroutine
		result <- err
	}()
	return <-result
}

// visitNetNS moves the calling thread to ns, calls f, and moves it back to where
// it was; back reports whether it is there.
func visitNetNS(ns Namespace, f func() error) (back bool, err error) {
	here, err := os.Open(callerDir + "/ns/net")
	if err != nil {
		return true, err
	}
	defer here.Close()
	there, err := os.Open(ns.dir + "/ns/net")
	if err != nil {
		return true, err
	}
	defer there.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(there.Fd()), &st); err != nil {
		return true, err
	}
	if uint32(st.Ino) != ns.inode {
		return true, errMoved
	}
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return true, fmt.Errorf("setns: %w", err)
	}
	err = f()
	return unix.Setns(int(here.Fd()), unix.CLONE_NEWNET) == nil, err
}
