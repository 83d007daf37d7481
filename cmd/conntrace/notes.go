package main

import (
	"fmt"
	"io"
	"log"
	"log/slog"
	"runtime"
	"strings"
	"unicode"

	"github.com/conntrace/conntrace/cmd/conntrace/internal/stdio"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// say writes one line to stderr.
func say(stderr io.Writer, format string, args ...any) {
	fmt.Fprintf(stderr, "conntrace: %s\n", oneLine(fmt.Sprintf(format, args...)))
}

// newLogger returns a logger that says what goes wrong, a line each.
func newLogger(stderr io.Writer) *slog.Logger {
	log.SetFlags(0)
	log.SetPrefix("conntrace: ")
	log.SetOutput(stderr)
	slog.SetLogLoggerLevel(slog.LevelWarn)
	return slog.Default()
}

// oneLine makes text one line. It may hold what others chose, as an error that
// quotes a line of a table does, so nothing is left in it that a terminal obeys.
func oneLine(text string) string {
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// noteSource says where events come from: to a person always, and to anyone if a
// better source was refused.
func noteSource(stderr io.Writer, info tracker.Info) {
	how := fmt.Sprintf("tracking TCP with %s", info.Source)
	polls := info.Polling != nil
	if polls {
		how = fmt.Sprintf("polling every %v (up to %v if that takes long) with %s, connections shorter than that may be missed",
			info.Polling.Shortest, info.Polling.Longest, info.Source)
		for _, r := range info.Refused {
			how += ": " + refusal(r)
		}
	}
	switch {
	case stdio.IsTerminal(stderr):
		say(stderr, "%s; Ctrl-C ends", how)
	case polls && len(info.Refused) > 0:
		say(stderr, "%s", how)
	}
}

// noteSnapshot says what a list lacks, and why.
func noteSnapshot(stderr io.Writer, s *tracker.Snapshot) {
	for _, warning := range s.Warnings {
		say(stderr, "warning: %v", warning)
	}
	if s.Hidden > 0 {
		say(stderr, "%s may not be looked into, and what is held there shows no PID: %s",
			count(s.Hidden, "process", "processes"), toSeeAll())
	}
	for _, r := range s.Refused {
		say(stderr, "read with %s: %s", s.Source, refusal(r))
	}
}

// refusal says what was refused, why, and what would mend it.
func refusal(r tracker.Refusal) string {
	s := fmt.Sprintf("%s refused: %v", r.What, r.Err)
	if r.Remedy != "" {
		s += "; " + r.Remedy
	}
	return s
}

// toSeeAll says what it takes to read the descriptors of other users' processes.
func toSeeAll() string {
	switch runtime.GOOS {
	case "linux":
		return "run as root or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
	case "windows":
		return "run as administrator"
	}
	return "run as root"
}

func count[T int | uint64](n T, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
