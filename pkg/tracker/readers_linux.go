package tracker

import (
	"bytes"
	"os"
	"strconv"
	"sync/atomic"

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
	if snapshots.Add(1) > 1 || socketsInUse() >= manySockets {
		return readers
	}
	return readers[1:]
}

// socketsInUse returns how many sockets there are in the caller's network
// namespace, 0 if that cannot be told (/proc/net/sockstat, "sockets: used N").
func socketsInUse() int {
	b, _ := os.ReadFile("/proc/thread-self/net/sockstat")
	_, rest, _ := bytes.Cut(b, []byte("sockets: used "))
	number, _, _ := bytes.Cut(rest, []byte("\n"))
	n, _ := strconv.Atoi(string(number))
	return n
}
