package fallback

import "time"

const (
	// A look may take one part in lookShare of the time until the next one, so that a
	// poller takes less than 2 % of a core, all told.
	lookShare = 64

	// maxStretch bounds the time between two looks, in shortest ones, however long
	// they take.
	maxStretch = 10

	// maxQuiet bounds, in shortest ones, how long a look is put off because the
	// counters say that there is nothing new.
	maxQuiet = 5
)

// A pace says when to look at the tables.
type pace struct {
	began time.Time     // when the last look began
	known time.Time     // what happened until then is known: by the last look, or as the counters had not changed
	cost  time.Duration // CPU time of a look, smoothed
	tried time.Time     // when the last look that failed began
}

// interval returns the time between two looks.
func (p *pace) interval(shortest time.Duration) time.Duration {
	return min(max(shortest, lookShare*p.cost), maxStretch*shortest)
}

// due returns when it is time to look.
func (p *pace) due(shortest time.Duration) time.Time {
	last := p.known
	if p.tried.After(last) {
		last = p.tried
	}
	return last.Add(p.interval(shortest))
}

// deadline returns until when a look may be put off.
func (p *pace) deadline(shortest time.Duration) time.Time {
	return p.began.Add(maxQuiet * shortest)
}

// looked notes a look that took so much CPU time, and returns how long something can
// have been there unseen.
func (p *pace) looked(began, ended time.Time, cost time.Duration) (unseen time.Duration) {
	switch {
	case p.began.IsZero(): // the first look has to find every process, and says little of the next
	case p.cost == 0:
		unseen, p.cost = ended.Sub(p.known), cost
	default:
		unseen = ended.Sub(p.known)
		p.cost += (cost - p.cost) / 4
	}
	p.began, p.known = began, began
	return unseen
}

// skipped notes that a look was put off, as nothing was new.
func (p *pace) skipped(now time.Time) (unseen time.Duration) {
	unseen = now.Sub(p.known)
	p.known = now
	return unseen
}

// failed notes a look that failed. Nothing is known by it, but the next one waits.
func (p *pace) failed(began time.Time) { p.tried = began }
