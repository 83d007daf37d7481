package tracker

import (
	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// A holderWatch follows who may hold sockets: processes that fork, run another
// program or exit change that, and a scan must find out how. Processes that hold
// none, which are most, change nothing.
type holderWatch struct {
	pids    map[int32]bool // may hold a TCP socket; true: it is exiting, and may hold it still
	last    int32          // the PID that was added last
	changed uint64         // table.clock when that came about
	stale   bool           // somebody's descriptors have changed since the last scan
}

func newHolderWatch() holderWatch { return holderWatch{pids: make(map[int32]bool)} }

// add notes that the process pid has got a socket.
func (h *holderWatch) add(pid int32) {
	if pid != h.last {
		h.pids[pid] = false
		h.last = pid
	}
}

// apply brings in what has become of a process.
func (h *holderWatch) apply(t *wireTask, clock uint64) {
	pid := int32(t.Pid)
	affected := false
	switch bpf.TrackerEventType(t.Header.Type) {
	case bpf.TrackerEventTypeEVENT_FORK:
		if _, affected = h.pids[int32(t.Parent)]; affected {
			h.pids[pid] = false
		}
	case bpf.TrackerEventTypeEVENT_EXEC: // close-on-exec
		_, affected = h.pids[pid]
	case bpf.TrackerEventTypeEVENT_EXIT:
		if _, affected = h.pids[pid]; affected {
			h.pids[pid] = true
			h.last = 0 // the number may come again
		}
	}
	if affected {
		h.expire(clock)
	}
}

// expire makes the next call of Connections scan.
func (h *holderWatch) expire(clock uint64) { h.stale, h.changed = true, clock }

// merge takes over who holds sockets from a scan that began when the table's clock
// was start.
func (h *holderWatch) merge(snap *fallback.Snapshot, start uint64) {
	before := h.pids
	h.pids, h.last = make(map[int32]bool, len(before)), 0
	exiting := false
	for i := range snap.Conns {
		for _, holder := range snap.Conns[i].Holders {
			dying := before[holder.PID]
			exiting = exiting || dying
			h.pids[holder.PID] = dying
		}
	}
	if h.changed > start { // those who have come since
		for pid, dying := range before {
			if _, ok := h.pids[pid]; !ok && !dying {
				h.pids[pid] = false
			}
		}
	}
	h.stale = h.changed > start || exiting
}

// failures remember the sockets whose failure to connect was told when their state
// changed, so that the error that connect(2) then returns is not told again. There
// is no such call where the socket does not block: the oldest are forgotten.
type failures struct {
	young, old map[uint64]struct{} // by cookie
}

func (f *failures) add(cookie uint64) {
	const generation = 1024
	if f.young == nil || len(f.young) >= generation {
		f.old, f.young = f.young, make(map[uint64]struct{})
	}
	f.young[cookie] = struct{}{}
}

// take reports whether the socket is remembered, and forgets it.
func (f *failures) take(cookie uint64) bool {
	for _, m := range []map[uint64]struct{}{f.young, f.old} {
		if _, ok := m[cookie]; ok {
			delete(m, cookie)
			return true
		}
	}
	return false
}
