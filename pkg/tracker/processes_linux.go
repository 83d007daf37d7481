package tracker

import (
	"bytes"
	"unsafe"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/internal/procinfo"
	"github.com/conntrace/conntrace/pkg/conn"
)

// A processCache turns the owners in records into conn.Processes, one for each
// process and program, so that events share them. It forgets those that were not
// used for a while: entries live in two generations, and the older one is dropped
// when the younger is full.
type processCache struct {
	reader     *procinfo.Reader
	young, old map[processKey]*conn.Process
	recent     [64]cachedProcess // those of the last events, by PID modulo the size
}

type cachedProcess struct {
	key     processKey
	process *conn.Process
}

// generation is how many processes a generation of the cache holds.
const generation = 2048

// A processKey tells a process, and the program that it runs.
type processKey struct {
	start uint64
	pid   uint32
	exec  uint32
	comm  [2]uint64
}

func newProcessCache(r *procinfo.Reader) *processCache {
	return &processCache{reader: r, young: make(map[processKey]*conn.Process)}
}

// get returns the process o as the kernel saw it. Its executable is looked up in
// procfs when the process is seen for the first time, and stays unknown if it has
// exited by then.
func (c *processCache) get(o *bpf.TrackerProcess) *conn.Process {
	key := processKey{start: o.Start, pid: o.Pid, exec: o.Exec, comm: o.Comm}
	recent := &c.recent[o.Pid%uint32(len(c.recent))]
	if recent.process == nil || recent.key != key {
		*recent = cachedProcess{key, c.find(key, o)}
	}
	return recent.process
}

func (c *processCache) find(key processKey, o *bpf.TrackerProcess) *conn.Process {
	if p := c.young[key]; p != nil {
		return p
	}
	p := c.old[key]
	if p == nil {
		comm, _, _ := bytes.Cut(unsafe.Slice((*byte)(unsafe.Pointer(&o.Comm)), unsafe.Sizeof(o.Comm)), []byte{0})
		p = &conn.Process{
			PID:    int32(o.Pid),
			UID:    o.Uid,
			HasUID: true,
			Start:  c.reader.FromBoot(o.Start),
			Comm:   string(comm),
			Cgroup: o.Cgroup,
		}
		if now, err := c.reader.Lookup(p.PID); err == nil && now.Start.Equal(p.Start) && now.Comm == p.Comm {
			p.Executable = now.Executable
		}
	}
	if len(c.young) >= generation {
		c.old, c.young = c.young, make(map[processKey]*conn.Process)
	}
	c.young[key] = p
	return p
}
