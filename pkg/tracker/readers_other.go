//go:build !linux

package tracker

import "github.com/conntrace/conntrace/pkg/fallback"

// readers are the tables that can be read.
var readers = []reader{
	{SourceNative, func(string) (fallback.Source, error) { return fallback.Native() }},
}

// candidates are the sources of a live tracker.
var candidates = pollingCandidates(readers)

// autoReaders returns the readers in the order in which SourceAuto tries them for a
// snapshot.
func autoReaders() []reader { return readers }
