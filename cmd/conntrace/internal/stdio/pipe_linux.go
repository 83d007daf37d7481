package stdio

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// OnClosed calls f once if w is a pipe whose reader goes away, even while
// nothing is written to it: `conntrace | head -1` shall end with head. It holds
// a thread until then, and wakes up for nothing else.
func OnClosed(w io.Writer, f func()) {
	file, ok := w.(*os.File)
	if !ok {
		return
	}
	if info, err := file.Stat(); err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return
	}
	go func() {
		for {
			// POLLERR is what pipe_poll tells a writer without readers, asked for or not.
			poll := []unix.PollFd{{Fd: int32(file.Fd())}}
			n, err := unix.Poll(poll, -1)
			if err == unix.EINTR {
				continue
			}
			if err == nil && n == 1 && poll[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0 {
				f()
			}
			return
		}
	}()
}
