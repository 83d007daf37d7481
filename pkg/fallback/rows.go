package fallback

import (
	"hash/maphash"
	"math/bits"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A Holding is a descriptor of a socket.
type Holding struct {
	Inode uint64 // of the socket
	conn.Holder
}

// join turns sockets into the rows that answer q: it gives each of conns, which
// has no owner yet, the process that holds it. The holders must be ascending by
// (PID, FD). The rows use the memory of conns.
//
// Of several processes that hold a socket, the one with the highest PID is the
// owner, as psutil has it, unless q asks for one process. An inet socket is one
// row, with the owner's lowest descriptor; a unix socket is a row for each of the
// owner's descriptors. A socket that nobody holds is a row too, unless q asks for
// a process.
func join(conns []conn.Conn, holders []Holding, q Query) []conn.Conn {
	index := newHolderIndex(holders)
	rows := conns[:0]
	var more []conn.Conn // a unix socket's rows but the first
	for i := range conns {
		c := &conns[i]
		all := index.holders(c.Inode)
		owner := ownerOf(all, q.PID)
		if len(owner) == 0 && q.PID != 0 {
			continue
		}
		rows = append(rows, *c)
		c = &rows[len(rows)-1]
		if len(owner) == 0 {
			c.FD = -1
			continue
		}
		if q.Holders {
			c.Holders = all
			c.Known |= conn.KnownHolders
		}
		c.PID, c.FD = owner[0].PID, owner[0].FD
		if c.Family == conn.Unix {
			for _, h := range owner[1:] {
				more = append(more, *c)
				more[len(more)-1].FD = h.FD
			}
		}
	}
	return distinct(append(rows, more...))
}

// ownerOf returns the part of holders, which are ascending, that belongs to the
// process pid, or to the one with the highest PID if pid is 0.
func ownerOf(holders []conn.Holder, pid int32) []conn.Holder {
	end := len(holders)
	if pid == 0 && end > 0 {
		pid = holders[end-1].PID
	}
	for end > 0 && holders[end-1].PID > pid {
		end--
	}
	start := end
	for start > 0 && holders[start-1].PID == pid {
		start--
	}
	return holders[start:end]
}

// A holderIndex finds the holders of a socket.
type holderIndex struct {
	group  map[uint64]int32 // number of the inode's group
	start  []int32          // where each group starts in sorted, and the last one ends
	sorted []conn.Holder    // by group, else in the order they came in
}

// newHolderIndex sorts by counting: the inodes are millions at worst, and no
// order among them is needed.
func newHolderIndex(holders []Holding) *holderIndex {
	x := &holderIndex{
		group:  make(map[uint64]int32, len(holders)),
		start:  make([]int32, 1, len(holders)+1),
		sorted: make([]conn.Holder, len(holders)),
	}
	groups := make([]int32, len(holders))
	for i, h := range holders {
		g, ok := x.group[h.Inode]
		if !ok {
			g = int32(len(x.group))
			x.group[h.Inode] = g
			x.start = append(x.start, 0)
		}
		groups[i] = g
		x.start[g+1]++
	}
	next := make([]int32, len(x.start)) // where the next holder of each group goes
	for g := 1; g < len(x.start); g++ {
		x.start[g] += x.start[g-1]
		next[g] = x.start[g]
	}
	for i, h := range holders {
		g := groups[i]
		x.sorted[next[g]] = h.Holder
		next[g]++
	}
	return x
}

// holders returns who holds the socket with the inode, in the order they came in.
func (x *holderIndex) holders(inode uint64) []conn.Holder {
	g, ok := x.group[inode]
	if !ok {
		return nil
	}
	return x.sorted[x.start[g]:x.start[g+1]:x.start[g+1]]
}

// distinct drops every row that equals an earlier one in psutil's seven fields
// and in its namespace, in place. Such rows are sockets without an owner, as two
// listeners with SO_REUSEPORT, and those that a table lists twice because it
// changed meanwhile.
func distinct(rows []conn.Conn) []conn.Conn {
	// An open-addressing hash table of indexes into rows, plus one. At most half of
	// it is filled; it takes a tenth of what a map with such keys would.
	slots := make([]int32, 1<<bits.Len(uint(2*len(rows))))
	mask := uint64(len(slots) - 1)
	seed := maphash.MakeSeed()
	out := rows[:0]
next:
	for i := range rows {
		c := &rows[i]
		h := hashRow(seed, c) & mask
		for ; slots[h] != 0; h = (h + 1) & mask {
			if equalRows(&out[slots[h]-1], c) {
				continue next
			}
		}
		out = append(out, *c)
		slots[h] = int32(len(out))
	}
	return out
}

func equalRows(a, b *conn.Conn) bool {
	return a.FD == b.FD && a.PID == b.PID && a.Family == b.Family && a.Type == b.Type && a.Status == b.Status &&
		a.NetNS == b.NetNS && a.Laddr == b.Laddr && a.Raddr == b.Raddr
}

func hashRow(seed maphash.Seed, c *conn.Conn) uint64 {
	if c.FD >= 0 {
		// Only the subflows of one MPTCP socket share a descriptor.
		return maphash.Comparable(seed, conn.Holder{PID: c.PID, FD: c.FD})
	}
	return maphash.Comparable(seed, [2]conn.Addr{c.Laddr, c.Raddr})
}
