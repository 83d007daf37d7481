package tracker

import "time"

// skips tells runs of a hook that were skipped from those that a cover is about to make
// up for (bpf/maps.h): the task may lose its CPU in between.
type skips struct {
	lost  uint64    // what has lasted
	least uint64    // how many there were at least, since
	since time.Time // zero: there have been no more
}

// settled is how long a skip has to last.
const settled = 200 * time.Millisecond

// lasting returns how many skips have lasted, if there are n at present.
func (s *skips) lasting(n uint64, now time.Time) uint64 {
	switch {
	case n <= s.lost:
		s.since = time.Time{}
	case s.since.IsZero():
		s.since, s.least = now, n
	default:
		s.least = min(s.least, n)
		if now.Sub(s.since) >= settled {
			s.lost, s.since = s.least, time.Time{}
		}
	}
	return s.lost
}

// pending reports whether there are some of which it is not known yet.
func (s *skips) pending() bool { return !s.since.IsZero() }
