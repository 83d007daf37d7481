package fallback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// An ownerSearch finds the processes that hold sockets. To look through all
// descriptors of all processes takes long, so it goes first where it is likely to
// find: to those who listen where a connection came in, to those who had new sockets
// lately, and to new processes.
type ownerSearch struct {
	fds      *procFDs
	wanted   map[uint64]*polled // sockets that are searched for, by inode
	known    []int32            // processes, when last they were listed
	recent   []int32            // processes that had new sockets, latest last
	visited  map[int32]struct{} // in this search
	holdings []Holding
}

// keptRecent is how many processes that had new sockets are looked at first.
const keptRecent = 32

func newOwnerSearch(root string) (*ownerSearch, error) {
	fds, err := openProcFDs(root)
	if err != nil {
		return nil, err
	}
	return &ownerSearch{fds: fds, wanted: make(map[uint64]*polled), visited: make(map[int32]struct{})}, nil
}

func (o *ownerSearch) close() { o.fds.close() }

// find fills in PID and FD of those sockets that have none and that a process holds.
// A connection gets the first process that is found to hold it. A listener, which
// many may hold, gets the one with the highest PID, as in a snapshot; so all are
// looked at. hidden counts the processes that may not be read; it is -1 if not all
// were looked at. exists reports whether a socket is still there, or may be.
func (o *ownerSearch) find(ctx context.Context, sockets []*polled, listeners listeners, exists func(c *conn.Conn) bool) (hidden int, err error) {
	clear(o.wanted)
	clear(o.visited)
	var likely []int32
	all := false
	for _, s := range sockets {
		if !s.wantsOwner() {
			continue
		}
		o.wanted[s.inode] = s
		if s.phase == listening {
			all = true
		} else if l, ok := listeners.find(&s.Conn); ok && l.pid != 0 {
			likely = append(likely, l.pid)
		}
	}
	if len(o.wanted) == 0 {
		return -1, nil
	}
	for _, pids := range [][]int32{likely, o.recent} {
		for _, pid := range slices.Backward(slices.Clone(pids)) {
			if err := o.visit(pid); err != nil && !errors.Is(err, fs.ErrPermission) {
				return -1, err
			}
			if len(o.wanted) == 0 {
				return -1, nil
			}
		}
	}
	// What has gone meanwhile is not worth the rest.
	maps.DeleteFunc(o.wanted, func(_ uint64, s *polled) bool { return !exists(&s.Conn) })
	if len(o.wanted) == 0 {
		return -1, nil
	}
	if _, err := unix.Seek(o.fds.root, 0, io.SeekStart); err != nil {
		return -1, err
	}
	before := o.known
	pids, err := o.fds.pids()
	if err != nil {
		return -1, err
	}
	o.known = pids
	for _, new := range []bool{true, false} {
		for _, pid := range slices.Backward(pids) {
			if _, known := slices.BinarySearch(before, pid); known == new {
				continue
			}
			if err := ctx.Err(); err != nil {
				return -1, err
			}
			err := o.visit(pid)
			switch {
			case errors.Is(err, fs.ErrPermission):
				hidden++
			case err != nil:
				return -1, err
			}
			if !all && len(o.wanted) == 0 {
				return -1, nil
			}
		}
	}
	return hidden, nil
}

// visit looks for the sockets among the descriptors of the process pid.
func (o *ownerSearch) visit(pid int32) (err error) {
	if _, ok := o.visited[pid]; ok {
		return nil
	}
	o.visited[pid] = struct{}{}
	o.holdings, err = o.fds.appendHolders(o.holdings[:0], pid)
	if err != nil {
		if vanished(err) {
			return nil
		}
		return fmt.Errorf("descriptors of process %d: %w", pid, err)
	}
	any := false
	for _, h := range o.holdings {
		s := o.wanted[h.Inode]
		if s == nil || s.PID == pid {
			continue // the lowest descriptor counts
		}
		any = true
		if s.PID < pid {
			s.PID, s.FD = pid, h.FD
		}
		if s.phase != listening {
			delete(o.wanted, h.Inode)
		}
	}
	if any {
		o.recent = slices.DeleteFunc(o.recent, func(p int32) bool { return p == pid })
		o.recent = append(o.recent, pid)
		if len(o.recent) > keptRecent {
			o.recent = slices.Delete(o.recent, 0, 1)
		}
	}
	return nil
}

// holds reports whether a descriptor is of a socket still.
func (o *ownerSearch) holds(c *conn.Conn) bool {
	var link [32]byte
	n, err := unix.Readlinkat(o.fds.root, strconv.Itoa(int(c.PID))+"/fd/"+strconv.Itoa(int(c.FD)), link[:])
	return err == nil && socketInode(link[:n]) == c.Inode
}
