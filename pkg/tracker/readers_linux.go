package tracker

import (
	"sync/atomic"

	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// readers are the tables that can be read on Linux, best first.
var readers = []reader{
	{SourceEBPF, iterSource},
	{SourceNetlink, fallback.Netlink},
	{SourceProcfs, fallback.Procfs},
}

// candidates are the sources of a live tracker on Linux, best first.
var candidates = append([]candidate{{SourceEBPF, openLive}}, pollingCandidates(readers[1:])...)

// manySockets is from how many sockets on it pays to load the iterators for a
// single snapshot: loading takes some 50 ms, and each socket then 1.5 us less.
const manySockets = 30_000

var snapshots atomic.Int64 // taken in this process

// autoReaders returns the readers in the order in which SourceAuto tries them for a
// snapshot. The iterators come first unless loading them would not pay: a program
// that takes one snapshot of few sockets is served best by sock_diag.
func autoReaders() []reader {
	if snapshots.Add(1) > 1 || sysinfo.SocketsInUse() >= manySockets {
		return readers
	}
	return readers[1:]
}
