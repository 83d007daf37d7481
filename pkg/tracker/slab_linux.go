package tracker

import "math/bits"

// A slab holds the sockets of a table side by side, so that to go through all of
// them is to go through memory in order. It grows by chunks, and gives back those
// that are empty.
type slab struct {
	chunks []*chunk
	free   []*chunk // those with room
}

const chunkSize = 256

type chunk struct {
	sockets [chunkSize]socket
	used    [chunkSize / 64]uint64 // a bit each
	count   int
	at      int // in slab.chunks
	atFree  int // in slab.free; -1: it is full
}

// get returns a socket that is not in use. What is in it is left over.
func (s *slab) get() *socket {
	if len(s.free) == 0 {
		c := &chunk{at: len(s.chunks)}
		s.chunks, s.free = append(s.chunks, c), append(s.free, c)
	}
	c := s.free[len(s.free)-1]
	i := 0
	for w, used := range c.used {
		if free := ^used; free != 0 {
			i = w*64 + bits.TrailingZeros64(free)
			break
		}
	}
	c.used[i/64] |= 1 << (i % 64)
	if c.count++; c.count == chunkSize {
		s.unlist(c)
	}
	so := &c.sockets[i]
	so.chunk, so.index = c, uint8(i)
	return so
}

// put gives back a socket.
func (s *slab) put(so *socket) {
	c, i := so.chunk, so.index
	*so = socket{}
	c.used[i/64] &^= 1 << (i % 64)
	if c.count == chunkSize {
		c.atFree = len(s.free)
		s.free = append(s.free, c)
	}
	// One that is empty is kept, in case that it is needed again at once.
	if c.count--; c.count == 0 && len(s.free) > 1 {
		s.unlist(c)
		last := s.chunks[len(s.chunks)-1]
		s.chunks[c.at], last.at = last, c.at
		s.chunks[len(s.chunks)-1] = nil
		s.chunks = s.chunks[:len(s.chunks)-1]
	}
}

// unlist takes c out of the list of those with room.
func (s *slab) unlist(c *chunk) {
	last := s.free[len(s.free)-1]
	s.free[c.atFree], last.atFree = last, c.atFree
	s.free[len(s.free)-1] = nil
	s.free = s.free[:len(s.free)-1]
	c.atFree = -1
}

// all yields every socket in use. None may be taken or given back meanwhile.
func (s *slab) all(yield func(*socket) bool) {
	for _, c := range s.chunks {
		for w, used := range c.used {
			for ; used != 0; used &= used - 1 {
				if !yield(&c.sockets[w*64+bits.TrailingZeros64(used)]) {
					return
				}
			}
		}
	}
}
