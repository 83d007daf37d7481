package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// A summary counts what watch has shown.
type summary struct {
	start  time.Time
	total  uint64
	byType [conn.EventState + 1]uint64
}

func (s *summary) add(ev *conn.Event) {
	s.total++
	if int(ev.Type) < len(s.byType) {
		s.byType[ev.Type]++
	}
}

// write writes one line: what was shown in which time, what was lost, and what a
// source that polls may have missed.
func (s *summary) write(stderr io.Writer, info tracker.Info, stats tracker.Stats) {
	var counts []string
	for typ, n := range s.byType {
		if n > 0 {
			counts = append(counts, fmt.Sprintf("%d %v", n, conn.EventType(typ)))
		}
	}
	byType := ""
	if len(counts) > 0 {
		byType = ": " + strings.Join(counts, ", ")
	}
	text := losses(stats.Lost)
	if info.Polling != nil {
		text += "; " + misses(stats)
	}
	say(stderr, "%s in %v%s; %s", count(s.total, "event", "events"), time.Since(s.start).Round(time.Millisecond), byType, text)
}

// misses says what a source that polls may have missed.
func misses(stats tracker.Stats) string {
	text := "how many short connections were missed is unknown"
	switch {
	case stats.Missed == 0:
		text = "no connection missed"
	case stats.Missed > 0:
		text = fmt.Sprintf("at most %s missed, none longer than %v",
			count(uint64(stats.Missed), "short connection", "short connections"), stats.LongestUnseen.Round(time.Millisecond))
	}
	if stats.Ownerless > 0 {
		text += fmt.Sprintf("; %s without process", count(stats.Ownerless, "event", "events"))
	}
	return text
}

// losses says what was lost, by cause.
func losses(lost tracker.Lost) string {
	var causes []string
	for _, c := range []struct {
		n    uint64
		what string
	}{
		{lost.RingFull, "the ring buffer was full"},
		{lost.Recursion, "a hook was running already"},
		{lost.Closes, "the buffer for closes was full"},
		{lost.SlowSubscriber, "the output was too slow"},
	} {
		if c.n > 0 {
			causes = append(causes, fmt.Sprintf("%d as %s", c.n, c.what))
		}
	}
	text := "none lost"
	if len(causes) > 0 {
		text = fmt.Sprintf("%d lost: %s", lost.Events()+lost.SlowSubscriber, strings.Join(causes, ", "))
	}
	if lost.MapFull > 0 {
		text += fmt.Sprintf("; %d without owner as the map was full", lost.MapFull)
	}
	return text
}
