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

// write writes one line: what was shown in which time, and what was lost.
func (s *summary) write(stderr io.Writer, stats tracker.Stats) {
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
	say(stderr, "%s in %v%s; %s", count(s.total, "event", "events"), time.Since(s.start).Round(time.Millisecond), byType, losses(stats.Lost))
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
