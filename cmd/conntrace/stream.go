package main

import (
	"bufio"
	"io"
	"sync"
	"time"
)

// flushDelay is how long a line may wait for others to be written with it: too
// short for a person to see, long enough to spare a system call a line under load.
const flushDelay = 20 * time.Millisecond

// A stream is a buffered writer whose buffer does not wait to be filled.
type stream struct {
	mu      sync.Mutex
	out     *bufio.Writer
	timer   *time.Timer // flushes
	pending bool        // the timer runs
	failed  func(error) // gets the error of a flush that nobody waits for
}

func newStream(w io.Writer, failed func(error)) *stream {
	s := &stream{out: bufio.NewWriterSize(w, 64<<10), failed: failed}
	s.timer = time.AfterFunc(time.Hour, s.flush)
	s.timer.Stop()
	return s
}

// Write writes p, within flushDelay.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.out.Write(p)
	if err == nil && !s.pending {
		s.pending = true
		s.timer.Reset(flushDelay)
	}
	return n, err
}

func (s *stream) flush() {
	s.mu.Lock()
	s.pending = false
	err := s.out.Flush()
	s.mu.Unlock()
	if err != nil {
		s.failed(err)
	}
}

// Close writes what is left and returns the first error of any write.
func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer.Stop()
	return s.out.Flush()
}
