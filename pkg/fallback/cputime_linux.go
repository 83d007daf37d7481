package fallback

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTimer begins to measure the CPU time of the calling goroutine, which stays on
// its thread until the returned function is called. That returns the time.
func cpuTimer() (stop func() time.Duration) {
	runtime.LockOSThread()
	began := threadTime()
	return func() time.Duration {
		defer runtime.UnlockOSThread()
		return threadTime() - began
	}
}

func threadTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // cannot fail: the clock exists
	return time.Duration(t.Nano())
}
