package tracker

import (
	"testing"
	"time"
)

// TestSkips: what is made up for in time is no loss, and of what is not, no more is
// than there was all the while.
func TestSkips(t *testing.T) {
	var s skips
	start := time.Now()
	for i, look := range []struct {
		after time.Duration
		n     uint64
		want  uint64
	}{
		{0, 0, 0},
		{10 * time.Millisecond, 3, 0},
		{20 * time.Millisecond, 0, 0},
		{1000 * time.Millisecond, 1, 0}, // another one
		{1100 * time.Millisecond, 4, 0},
		{1200 * time.Millisecond, 2, 1},
		{1210 * time.Millisecond, 2, 1},
		{1500 * time.Millisecond, 2, 2},
		{1510 * time.Millisecond, 2, 2},
	} {
		if got := s.lasting(look.n, start.Add(look.after)); got != look.want {
			t.Errorf("look %d: %d have lasted, want %d", i, got, look.want)
		}
	}
}
