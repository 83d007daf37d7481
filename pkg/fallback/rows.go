package fallback

import (
	"hash/maphash"
	"math/bits"
	"slices"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A Holding is a descriptor of a socket.
type Holding struct {
	Inode uint64 // of the socket
	conn.Holder
}

// join turns sockets into the rows that answer q: it gives each of conns, which
// has no owner yet, the process that holds it by index, which must have been built
// for q.PID. The rows use the memory of conns.
//
// Of several processes that hold a socket, the one with the highest PID is the
// owner, as psutil has it, unless q asks for one process. An inet socket is one
// row, with the owner's lowest descriptor; a unix socket is a row for each of the
// owner's descriptors. A socket that nobody holds is a row too, unless q asks for
// a process.
func join(conns []conn.Conn, index *holderIndex, q Query) []conn.Conn {
	holders := index.holdings
	rows := 0                       // conns[:rows] are done
	var more []conn.Conn            // a unix socket's rows but the first
	suspects := make([]int32, 0, 8) // rows that may equal another one
	for i := range conns {
		s := index.find(conns[i].Inode)
		held := s != nil && s.owner >= 0
		if !held && q.PID != 0 {
			continue
		}
		if rows != i {
			conns[rows] = conns[i]
		}
		c := &conns[rows]
		rows++
		if !held {
			c.FD = -1
			suspects = append(suspects, int32(rows-1))
			continue
		}
		if q.Holders {
			c.Holders = index.holders(s)
			c.Known |= conn.KnownHolders
		}
		owner := holders[s.owner]
		c.PID, c.FD = owner.PID, owner.FD
		if c.Family == conn.Unix && s.row < 0 {
			for n := index.next[s.owner]; n >= 0 && holders[n].PID == owner.PID; n = index.next[n] {
				more = append(more, *c)
				more[len(more)-1].FD = holders[n].FD
			}
		}
		// Only the subflows of an MPTCP socket share an inode; and a socket may be
		// listed twice if the table changed meanwhile.
		if s.row >= 0 {
			suspects = append(suspects, s.row, int32(rows-1))
		}
		s.row = int32(rows - 1)
	}
	return append(withoutDoubles(conns[:rows], suspects), more...)
}

// A holderIndex finds the holders of a socket. It is a hash table of inodes with
// open addressing, at most half full; a map takes three times as long.
type holderIndex struct {
	holdings []Holding
	slots    []holderSlot
	shift    int
	next     []int32 // of each holding, the next one of the same socket; -1: none
}

type holderSlot struct {
	inode       uint64 // 0: the slot is free
	first, last int32  // holdings of the socket
	owner       int32  // the first one of the process that owns it; -1: that holds none
	row         int32  // the last row that was made of the socket; -1: none
}

// build indexes holdings, which must be ascending by (PID, FD). The owner of a
// socket is the process pid, or the one with the highest PID if pid is 0. The memory
// of what was indexed before is used again.
func (x *holderIndex) build(holdings []Holding, pid int32) {
	size := bits.Len(uint(2*len(holdings)) | 1)
	x.holdings, x.shift = holdings, 64-size
	x.slots = slices.Grow(x.slots[:0], 1<<size)[:1<<size]
	clear(x.slots)
	x.next = slices.Grow(x.next[:0], len(holdings))[:len(holdings)]
	for i := range holdings {
		h := &holdings[i]
		n := int32(i)
		x.next[n] = -1
		s := x.slot(h.Inode)
		if s.inode == 0 {
			*s = holderSlot{inode: h.Inode, first: n, last: n, owner: -1, row: -1}
		} else {
			x.next[s.last] = n
			s.last = n
		}
		if pid == 0 && (s.owner < 0 || h.PID > holdings[s.owner].PID) || pid == h.PID && s.owner < 0 {
			s.owner = n
		}
	}
}

// slot returns the slot of inode, or the free one where it belongs.
func (x *holderIndex) slot(inode uint64) *holderSlot {
	const golden = 0x9e3779b97f4a7c15 // 2^64 / golden ratio: Fibonacci hashing
	mask := len(x.slots) - 1
	for i := int(inode * golden >> x.shift); ; i = (i + 1) & mask {
		if s := &x.slots[i]; s.inode == inode || s.inode == 0 {
			return s
		}
	}
}

// find returns the slot of inode, nil if nobody holds the socket.
func (x *holderIndex) find(inode uint64) *holderSlot {
	if inode == 0 {
		return nil
	}
	if s := x.slot(inode); s.inode != 0 {
		return s
	}
	return nil
}

// holders returns everyone who holds the socket of s, ascending by (PID, FD).
func (x *holderIndex) holders(s *holderSlot) (all []conn.Holder) {
	for n := s.first; n >= 0; n = x.next[n] {
		all = append(all, x.holdings[n].Holder)
	}
	return all
}

// strays returns the inodes of the sockets that no row has been made of. It is never
// nil.
func (x *holderIndex) strays() []uint64 {
	inodes := []uint64{}
	for i := range x.slots {
		if s := &x.slots[i]; s.inode != 0 && s.row < 0 {
			inodes = append(inodes, s.inode)
		}
	}
	return inodes
}

// withoutDoubles drops every row that equals an earlier one in psutil's seven
// fields and in its namespace, in place. Only those at suspects are compared. Most
// are sockets without an owner, such as two listeners with SO_REUSEPORT.
func withoutDoubles(rows []conn.Conn, suspects []int32) []conn.Conn {
	if len(suspects) < 2 {
		return rows
	}
	// A hash table of indexes into rows, plus one, as in holderIndex.
	slots := make([]int32, 1<<bits.Len(uint(2*len(suspects))))
	mask := uint64(len(slots) - 1)
	seed := maphash.MakeSeed()
	var doubles []int32
next:
	for _, i := range suspects {
		c := &rows[i]
		h := maphash.Comparable(seed, [2]conn.Addr{c.Laddr, c.Raddr}) & mask
		for ; slots[h] != 0; h = (h + 1) & mask {
			if first := slots[h] - 1; equalRows(&rows[first], c) {
				if first != i {
					doubles = append(doubles, i)
				}
				continue next
			}
		}
		slots[h] = i + 1
	}
	if len(doubles) == 0 {
		return rows
	}
	slices.Sort(doubles)
	doubles = slices.Compact(doubles)
	kept := rows[:doubles[0]]
	for n, i := range doubles {
		end := len(rows)
		if n+1 < len(doubles) {
			end = int(doubles[n+1])
		}
		kept = append(kept, rows[i+1:end]...)
	}
	return kept
}

func equalRows(a, b *conn.Conn) bool {
	return a.FD == b.FD && a.PID == b.PID && a.Family == b.Family && a.Type == b.Type && a.Status == b.Status &&
		a.NetNS == b.NetNS && a.Laddr == b.Laddr && a.Raddr == b.Raddr
}
