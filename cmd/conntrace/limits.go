package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/conntrace/conntrace/pkg/tracker"
	"github.com/spf13/cobra"
)

// limitFlags bound what a tracker uses of the kernel's memory. 0 is the default.
type limitFlags struct {
	ringBuffer     int
	maxConnections int
}

func (f *limitFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var(&value[int]{dst: &f.ringBuffer, text: "64MiB", name: "SIZE", parse: parseRingBuffer}, "ring-buffer", "room for events on their way from the kernel, rounded up to a power of two; what does not fit is lost, and told")
	flags.Var(&value[int]{dst: &f.maxConnections, text: strconv.Itoa(defaultMaxConnections), name: "N", parse: parseMaxConnections}, "max-connections", "how many accepted connections the kernel remembers the process of, where it needs a table for that; what does not fit is counted")
	complete(cmd, "ring-buffer", nil)
	complete(cmd, "max-connections", nil)
}

// configure sets the limits of cfg.
func (f *limitFlags) configure(cfg *tracker.Config) {
	cfg.RingBuffer, cfg.MaxConnections = f.ringBuffer, f.maxConnections
}

// The limits of the limits.
const (
	defaultMaxConnections = 1 << 18
	maxMaxConnections     = 1 << 26
	maxRingBuffer         = 1 << 30
	maxBuffer             = 1 << 26
)

func parseRingBuffer(s string) (int, error) {
	n, err := parseSize(s)
	if err == nil && (n == 0 || n > maxRingBuffer) {
		err = fmt.Errorf("%q is out of range: give a size from 1 to 1GiB", s)
	}
	return int(n), err
}

func parseMaxConnections(s string) (int, error) { return parseLimit(s, maxMaxConnections) }

func parseBuffer(s string) (int, error) { return parseLimit(s, maxBuffer) }

func parseLimit(s string, highest int) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || n == 0 || n > uint64(highest) {
		return 0, fmt.Errorf("%q is no limit: give a number from 1 to %d", s, highest)
	}
	return int(n), nil
}

// parseSize takes a number of bytes, or of KiB, MiB or GiB, which K, M and G stand for.
func parseSize(s string) (uint64, error) {
	digits := strings.TrimRight(s, "KMGiB")
	shift, ok := map[string]uint{"": 0, "B": 0, "K": 10, "KiB": 10, "M": 20, "MiB": 20, "G": 30, "GiB": 30}[s[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || !ok || n > math.MaxUint64>>shift {
		return 0, fmt.Errorf("%q is no size: give bytes, or a number with KiB, MiB or GiB, such as 64MiB", s)
	}
	return n << shift, nil
}

// A limitNote says that a limit was reached, once for each.
type limitNote struct {
	stderr io.Writer
	said   map[string]bool
}

func newLimitNote(stderr io.Writer) *limitNote {
	return &limitNote{stderr: stderr, said: make(map[string]bool)}
}

// check says which limits lost has newly reached.
func (l *limitNote) check(lost tracker.Lost) {
	for _, limit := range []struct {
		n    uint64
		flag string
		note string
	}{
		{lost.RingFull, "--ring-buffer", "the ring buffer is full, and events are lost: the table is repaired, and a larger %s may help"},
		{lost.MapFull, "--max-connections", "the kernel's table of accepted connections is full, and some lack their process when they close: a larger %s may help"},
		{lost.SlowSubscriber, "--buffer", "the output is too slow, and events are lost: a faster reader or a larger %s may help"},
	} {
		if limit.n > 0 && !l.said[limit.flag] {
			l.said[limit.flag] = true
			say(l.stderr, limit.note, limit.flag)
		}
	}
}

// checkEvery is seldom enough not to show among the wake-ups of an idle process.
const checkEvery = 5 * time.Second

// watch checks now and then until ctx ends.
func (l *limitNote) watch(ctx context.Context, t *tracker.Tracker) {
	ticker := time.NewTicker(checkEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			l.check(t.Stats().Lost)
		}
	}
}
