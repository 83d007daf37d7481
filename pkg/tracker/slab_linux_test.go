package tracker

import (
	"math/rand/v2"
	"testing"
)

// TestSlab: every socket is another one, all of them are found, and memory is given
// back.
func TestSlab(t *testing.T) {
	var s slab
	live := make(map[*socket]uint64)
	var order []*socket
	random := rand.New(rand.NewPCG(1, 2))
	check := func() {
		t.Helper()
		n := 0
		for so := range s.all {
			if live[so] != so.changed {
				t.Fatalf("a socket holds %d, not %d", so.changed, live[so])
			}
			n++
		}
		if n != len(live) {
			t.Fatalf("%d sockets, want %d", n, len(live))
		}
		if most := 2 + len(live); len(s.chunks) > most {
			t.Fatalf("%d chunks for %d sockets", len(s.chunks), len(live))
		}
	}
	for _, grow := range []bool{true, false, true, false} {
		for range 5 * chunkSize {
			if grow == (random.IntN(4) > 0) {
				so := s.get()
				if _, ok := live[so]; ok {
					t.Fatal("a socket was handed out twice")
				}
				so.changed = random.Uint64()
				live[so] = so.changed
				order = append(order, so)
			} else if len(order) > 0 {
				i := random.IntN(len(order))
				so := order[i]
				order[i] = order[len(order)-1]
				order = order[:len(order)-1]
				delete(live, so)
				s.put(so)
			}
		}
		check()
	}
	for so := range live {
		delete(live, so)
		s.put(so)
	}
	if check(); len(s.chunks) > 1 {
		t.Errorf("%d chunks are kept for nothing", len(s.chunks))
	}
}
