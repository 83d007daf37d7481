package main

import (
	"testing"

	"github.com/conntrace/conntrace/pkg/tracker"
)

func TestCheckHooks(t *testing.T) {
	for source, ok := range map[tracker.Source]bool{
		tracker.SourceAuto: true, tracker.SourceEBPF: true, tracker.SourceNetlink: false, tracker.SourceProcfs: false,
	} {
		if err := checkHooks([]string{"raw_tp"}, source); (err == nil) != ok {
			t.Errorf("source %q: %v", source, err)
		}
		if err := checkHooks(nil, source); err != nil {
			t.Errorf("source %q without hooks: %v", source, err)
		}
	}
}
