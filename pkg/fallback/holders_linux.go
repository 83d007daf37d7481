package fallback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// procFDs reads the descriptors of processes in procfs. A link is read once, and
// leaves no garbage: a big machine has a million of them.
type procFDs struct {
	root int // /proc, opened
	buf  []byte
}

func openProcFDs(root string) (*procFDs, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	return &procFDs{root: fd, buf: make([]byte, 32<<10)}, nil
}

func (p *procFDs) close() { unix.Close(p.root) }

// procHolders reads who holds which socket in the procfs at root.
type procHolders struct{ root string }

// All implements [Holders]. As in psutil, a process that may not be read throughout
// holds nothing, and one that has vanished neither.
func (h procHolders) All(ctx context.Context) (holders []Holding, hidden int, err error) {
	p, err := openProcFDs(h.root)
	if err != nil {
		return nil, 0, err
	}
	defer p.close()
	pids, err := p.pids()
	if err != nil {
		return nil, 0, err
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		more, err := p.appendHolders(holders, pid)
		switch {
		case err == nil:
			holders = more
		case errors.Is(err, fs.ErrPermission):
			hidden++
		case !vanished(err):
			return nil, 0, fmt.Errorf("descriptors of process %d: %w", pid, err)
		}
	}
	return holders, hidden, nil
}

// holdersOf returns what the process pid holds.
func holdersOf(root string, pid int32) ([]Holding, error) {
	p, err := openProcFDs(root)
	if err != nil {
		return nil, err
	}
	defer p.close()
	holders, err := p.appendHolders(nil, pid)
	if err != nil {
		return nil, processError(pid, err)
	}
	return holders, nil
}

// pids returns all processes, ascending: that is how proc_pid_readdir lists them.
func (p *procFDs) pids() ([]int32, error) {
	var pids []int32
	dir := dirReader{fd: p.root, buf: p.buf}
	for {
		name, err := dir.next()
		if err != nil {
			return nil, err
		}
		if name == nil {
			return pids, nil
		}
		if pid, ok := parseUint(name, 31); ok {
			pids = append(pids, int32(pid))
		}
	}
}

// appendHolders appends the sockets among the descriptors of the process pid, as
// its thread-group leader has them. They are ascending: that is how
// proc_readfd_common lists them.
func (p *procFDs) appendHolders(dst []Holding, pid int32) ([]Holding, error) {
	fd, err := unix.Openat(p.root, strconv.Itoa(int(pid))+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	dir := dirReader{fd: fd, buf: p.buf}
	for {
		name, err := dir.next()
		if err != nil {
			return nil, err
		}
		if name == nil {
			return dst, nil
		}
		fd, ok := parseUint(name, 31)
		if !ok {
			continue // "." and ".."
		}
		inode, err := dir.socket(name)
		if err == unix.EACCES {
			return nil, err // the process has changed its credentials
		}
		if inode != 0 {
			dst = append(dst, Holding{Inode: inode, Holder: conn.Holder{PID: pid, FD: int32(fd)}})
		}
	}
}

// A dirReader reads a directory.
type dirReader struct {
	fd   int
	buf  []byte
	rest []byte // the part of buf that holds entries yet to be returned
}

// next returns the name of the next entry, which is good until the next call and
// is followed by a NUL in memory; nil at the end.
func (d *dirReader) next() ([]byte, error) {
	if len(d.rest) == 0 {
		n, err := unix.ReadDirent(d.fd, d.buf)
		if err != nil || n == 0 {
			return nil, err
		}
		d.rest = d.buf[:n]
	}
	const reclen, nameOffset = unsafe.Offsetof(unix.Dirent{}.Reclen), unsafe.Offsetof(unix.Dirent{}.Name)
	size := hostEndian.Uint16(d.rest[reclen:])
	name := d.rest[nameOffset:size]
	d.rest = d.rest[size:]
	return name[:bytes.IndexByte(name, 0)], nil
}

// socket returns the inode of the socket that the entry name, from [dirReader.next],
// is a link to; 0 if it is none.
func (d *dirReader) socket(name []byte) (inode uint64, err error) {
	// Enough for "socket:[18446744073709551615]". The name of any other file may be
	// cut short.
	var link [32]byte
	n, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(d.fd), uintptr(unsafe.Pointer(&name[0])),
		uintptr(unsafe.Pointer(&link)), uintptr(len(link)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	digits, ok := bytes.CutPrefix(link[:n], []byte("socket:["))
	if !ok {
		return 0, nil
	}
	digits, _ = bytes.CutSuffix(digits, []byte("]"))
	inode, _ = parseUint(digits, 64)
	return inode, nil
}

// vanished reports whether err says that a process is gone.
func vanished(err error) bool { return err == unix.ENOENT || err == unix.ESRCH }

// processError says what err, from reading the directory of a process, means.
func processError(pid int32, err error) error {
	if vanished(err) {
		err = conn.ErrNoSuchProcess
	}
	return fmt.Errorf("process %d: %w", pid, err)
}
