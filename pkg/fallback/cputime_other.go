//go:build !linux

package fallback

import "time"

// cpuTimer begins to measure time. What passes is at least what the CPU is used for.
func cpuTimer() (stop func() time.Duration) {
	began := time.Now()
	return func() time.Duration { return time.Since(began) }
}
