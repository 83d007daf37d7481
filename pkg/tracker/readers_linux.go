package tracker

import "github.com/conntrace/conntrace/pkg/fallback"

// readers are the tables that can be read on Linux, best first.
var readers = []reader{
	{SourceEBPF, iterSource},
	{SourceNetlink, fallback.Netlink},
	{SourceProcfs, fallback.Procfs},
}

// candidates are the sources of a live tracker on Linux, best first.
var candidates = append([]candidate{{SourceEBPF, openLive}}, pollingCandidates(readers[1:])...)
