package fallback

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const second = time.Second
	start := time.Unix(1_700_000_000, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	var p pace
	if got := p.looked(start, at(second), second); got != 0 || p.interval(second) != second {
		t.Errorf("the first look: %v unseen, then every %v", got, p.interval(second))
	}
	if got := p.looked(at(second), at(second+20*time.Millisecond), 10*time.Millisecond); got != 1020*time.Millisecond {
		t.Errorf("%v unseen", got)
	}
	if got := p.interval(second); got != second {
		t.Errorf("cheap looks every %v", got)
	}
	for i := range 30 {
		p.looked(at(time.Duration(i+2)*second), at(time.Duration(i+2)*second), 40*time.Millisecond)
	}
	if got := p.interval(second).Round(100 * time.Millisecond); got != 2600*time.Millisecond {
		t.Errorf("looks of 40 ms every %v, want 64 times as long", got)
	}
	for i := range 30 {
		p.looked(at(time.Duration(i+40)*second), at(time.Duration(i+40)*second), second)
	}
	if got := p.interval(second); got != maxStretch*second {
		t.Errorf("looks of 1 s every %v", got)
	}
	last := at(69 * second)
	if got := p.due(second); !got.Equal(last.Add(maxStretch * second)) {
		t.Errorf("due at %v", got.Sub(start))
	}
	if got := p.deadline(second); !got.Equal(last.Add(maxQuiet * second)) {
		t.Errorf("deadline at %v", got.Sub(start))
	}
	// A look that was needless is as good as one, but puts off no deadline.
	if got := p.skipped(last.Add(3 * second)); got != 3*second || p.deadline(second) != last.Add(maxQuiet*second) {
		t.Errorf("%v unseen", got)
	}
	p.failed(last.Add(4 * second))
	if got := p.due(second); !got.Equal(last.Add((4 + maxStretch) * second)) {
		t.Errorf("after a failure due at %v", got.Sub(start))
	}
	if got := p.looked(last.Add(5*second), last.Add(5*second), second); got != 2*second {
		t.Errorf("after a failure %v unseen", got)
	}
}
