package fallback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
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

// A portion is what one worker has read: the holdings of some processes, and which
// part belongs to which.
type portion struct {
	holdings []Holding
	parts    []part
	hidden   int
	err      error
}

type part struct{ process, start, end int }

// Append implements [Holders]. As in psutil, a process that may not be read
// throughout holds nothing, and one that has vanished neither. Nearly all of the
// time is the kernel's, so the processes are shared among as many workers as can run.
func (h procHolders) Append(ctx context.Context, dst []Holding) (holders []Holding, hidden int, err error) {
	p, err := openProcFDs(h.root)
	if err != nil {
		return nil, 0, err
	}
	defer p.close()
	pids, err := p.pids()
	if err != nil {
		return nil, 0, err
	}

	portions := make([]portion, min(runtime.GOMAXPROCS(0), 4))
	var next atomic.Int64 // process to read
	var wg sync.WaitGroup
	for i := range portions {
		wg.Go(func() { portions[i].read(ctx, p.root, pids, &next) })
	}
	wg.Wait()

	// Every worker's parts are in the order of the processes: merge them.
	for {
		var first *portion
		for i := range portions {
			if w := &portions[i]; len(w.parts) > 0 && (first == nil || w.parts[0].process < first.parts[0].process) {
				first = w
			}
		}
		if first == nil {
			break
		}
		dst = append(dst, first.holdings[first.parts[0].start:first.parts[0].end]...)
		first.parts = first.parts[1:]
	}
	for i := range portions {
		hidden += portions[i].hidden
		err = errors.Join(err, portions[i].err)
	}
	return dst, hidden, err
}

// read reads processes of pids, of which next is the number of the next one, until
// there are none left.
func (w *portion) read(ctx context.Context, root int, pids []int32, next *atomic.Int64) {
	p := procFDs{root: root, buf: make([]byte, 32<<10)}
	for {
		n := int(next.Add(1)) - 1
		if n >= len(pids) {
			return
		}
		if w.err = ctx.Err(); w.err != nil {
			return
		}
		start := len(w.holdings)
		more, err := p.appendHolders(w.holdings, pids[n])
		switch {
		case err == nil:
			w.holdings = more
			if len(more) > start {
				w.parts = append(w.parts, part{n, start, len(more)})
			}
		case errors.Is(err, fs.ErrPermission):
			w.hidden++
		case !vanished(err):
			w.err = fmt.Errorf("descriptors of process %d: %w", pids[n], err)
			return
		}
	}
}

// appendHoldersOf appends what the process pid holds to dst.
func appendHoldersOf(dst []Holding, root string, pid int32) ([]Holding, error) {
	p, err := openProcFDs(root)
	if err != nil {
		return nil, err
	}
	defer p.close()
	holders, err := p.appendHolders(dst, pid)
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
	name, rest, err := nextDirent(d.rest)
	d.rest = rest
	return name, err
}

// nextDirent splits the first struct linux_dirent64 off b and returns its name,
// which is followed by a NUL in memory.
func nextDirent(b []byte) (name, rest []byte, err error) {
	const reclen, nameOffset = int(unsafe.Offsetof(unix.Dirent{}.Reclen)), int(unsafe.Offsetof(unix.Dirent{}.Name))
	if len(b) < nameOffset {
		return nil, nil, errShort
	}
	size := int(hostEndian.Uint16(b[reclen:]))
	if size < nameOffset || size > len(b) {
		return nil, nil, errShort
	}
	end := bytes.IndexByte(b[nameOffset:size], 0)
	if end < 0 {
		return nil, nil, errShort
	}
	return b[nameOffset : nameOffset+end], b[size:], nil
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
	return socketInode(link[:n]), nil
}

// socketInode returns the inode in the link to a socket; 0 for any other link.
func socketInode(link []byte) uint64 {
	digits, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok {
		return 0
	}
	if digits, ok = bytes.CutSuffix(digits, []byte("]")); !ok {
		return 0
	}
	inode, _ := parseUint(digits, 64)
	return inode
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
