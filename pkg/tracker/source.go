package tracker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/conntrace/conntrace/pkg/fallback"
)

// A Source names where a tracker gets its answers from.
type Source string

// The sources, best first. SourceAuto takes the first one that is not refused.
const (
	SourceAuto    Source = ""        // the zero value
	SourceEBPF    Source = "ebpf"    // Linux: BPF programs; every event, with its owner
	SourceNetlink Source = "netlink" // Linux: sock_diag, asked again and again
	SourceProcfs  Source = "procfs"  // Linux: /proc/net, asked again and again
	SourceNative  Source = "native"  // the socket tables of any other system
)

// Sources returns the names of all sources, those of other systems too.
func Sources() []Source {
	return []Source{SourceEBPF, SourceNetlink, SourceProcfs, SourceNative}
}

// A candidate is a source that a live tracker may use on this system.
type candidate struct {
	source Source
	open   func(ctx context.Context, cfg Config, h *hub) (backend, Info, error)
}

// A reader is a source that can be asked once.
type reader struct {
	source Source
	open   func(procfs string) (fallback.Source, error)
}

// shared returns the source that all snapshots of this process share: to open one
// takes longer than to read a small table. It is kept, unless it was refused.
func (r reader) shared(procfs string) (fallback.Source, error) {
	key := [2]string{string(r.source), procfs}
	if s, ok := sharedSources.Load(key); ok {
		return s.(fallback.Source), nil
	}
	s, err := r.open(procfs)
	if err == nil {
		sharedSources.Store(key, s)
	}
	return s, err
}

var sharedSources sync.Map // [2]string{source, procfs} to fallback.Source

func pollingCandidates(readers []reader) []candidate {
	var cs []candidate
	for _, r := range readers {
		cs = append(cs, candidate{r.source, func(ctx context.Context, cfg Config, h *hub) (backend, Info, error) {
			return openPolling(ctx, cfg, h, r.open)
		}})
	}
	return cs
}

// choose returns those of all that source means: itself, or all for SourceAuto.
func choose[T any](all []T, source Source, name func(T) Source) ([]T, error) {
	if source == SourceAuto {
		return all, nil
	}
	if i := slices.IndexFunc(all, func(t T) bool { return name(t) == source }); i >= 0 {
		return all[i : i+1], nil
	}
	if slices.Contains(Sources(), source) {
		return nil, fmt.Errorf("source %s cannot do this on this system: %w", source, errors.ErrUnsupported)
	}
	return nil, fmt.Errorf("unknown source %q; valid ones are %v", source, Sources())
}

// refusedError is what a caller gets to whom all sources were refused.
func refusedError(refused []Refusal) error {
	errs := make([]error, len(refused))
	for i, r := range refused {
		if errs[i] = fmt.Errorf("%s: %w", r.What, r.Err); r.Remedy != "" {
			errs[i] = fmt.Errorf("%w; %s", errs[i], r.Remedy)
		}
	}
	return errors.Join(errs...)
}
