package main

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// writes records what reaches the writer below a stream.
type writes struct {
	data  []string
	times []time.Time
	err   error
}

func (w *writes) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.data = append(w.data, string(p))
	w.times = append(w.times, time.Now())
	return len(p), nil
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var below writes
		s := newStream(&below, func(err error) { t.Error(err) })
		start := time.Now()
		for range 3 { // a burst is written at once, soon after its first line
			io.WriteString(s, "x\n")
			time.Sleep(flushDelay / 4)
		}
		time.Sleep(time.Second)
		io.WriteString(s, "y\n")
		time.Sleep(time.Second)
		io.WriteString(s, "z\n")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)

		if len(below.data) != 3 || below.data[0] != "x\nx\nx\n" || below.data[1] != "y\n" || below.data[2] != "z\n" {
			t.Errorf("written: %q", below.data)
		}
		if late := below.times[0].Sub(start); late > flushDelay {
			t.Errorf("the first line was written after %v", late)
		}
	})
}

func TestStreamTellsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("disk full")
		var told error
		s := newStream(&writes{err: full}, func(err error) { told = err })
		io.WriteString(s, "x\n")
		time.Sleep(time.Second)
		synctest.Wait()
		if !errors.Is(told, full) {
			t.Errorf("told %v, want %v", told, full)
		}
		if _, err := io.WriteString(s, "y\n"); !errors.Is(err, full) {
			t.Errorf("the next write returns %v, want %v", err, full)
		}
		if err := s.Close(); !errors.Is(err, full) {
			t.Errorf("Close returns %v, want %v", err, full)
		}
	})
}
