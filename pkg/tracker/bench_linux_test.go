package tracker_test

import (
	"testing"

	"github.com/conntrace/conntrace/pkg/tracker"
)

// BenchmarkOpen loads and attaches all programs, and reads the sockets that exist.
func BenchmarkOpen(b *testing.B) {
	for b.Loop() {
		tr, err := tracker.Open(b.Context(), tracker.Config{Source: tracker.SourceEBPF})
		if err != nil {
			b.Skip(err)
		}
		b.StopTimer()
		tr.Close()
		b.StartTimer()
	}
}
