package tracker

import (
	"context"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// NetConnections returns what psutil's net_connections(kind) returns, for the
// caller's network namespace, read from the kernel now. What could not be read is
// told by [TakeSnapshot].
func NetConnections(ctx context.Context, kind conn.Kind) ([]conn.Conn, error) {
	s, err := TakeSnapshot(ctx, SnapshotConfig{Query: fallback.Query{Kind: kind}})
	return s.Conns, err
}

// NetConnectionsPID returns the sockets that the process pid holds, as psutil's
// Process(pid).net_connections(kind) does. Its error wraps
// [conn.ErrNoSuchProcess] or [io/fs.ErrPermission] where they apply. As with psutil, a
// zombie has no rows for root, and permission is denied to others.
func NetConnectionsPID(ctx context.Context, kind conn.Kind, pid int32) ([]conn.Conn, error) {
	if pid <= 0 {
		return nil, conn.ErrNoSuchProcess // in a Query, 0 means the whole system
	}
	s, err := TakeSnapshot(ctx, SnapshotConfig{Query: fallback.Query{Kind: kind, PID: pid}})
	return s.Conns, err
}

// SnapshotConfig says what snapshot to take, and how.
type SnapshotConfig struct {
	Source Source // SourceAuto takes the best one
	ProcFS string // where procfs is mounted; "" is /proc
	fallback.Query
}

// A Snapshot is what [TakeSnapshot] saw.
type Snapshot struct {
	fallback.Snapshot
	Source  Source    // the source that gave it
	Refused []Refusal // better sources that could not be had
}

// TakeSnapshot reads the socket tables once. All sources give the same rows.
// SourceAuto takes the fastest: BPF iterators, unless this is the first snapshot of
// the process and of few sockets, for which they would not be worth loading. It
// turns to the next source if one is refused, but not if the question itself has no
// answer: a process that does not exist, or may not be looked at.
func TakeSnapshot(ctx context.Context, cfg SnapshotConfig) (Snapshot, error) {
	if err := cfg.Kind.Check(); err != nil {
		return Snapshot{}, err
	}
	if cfg.ProcFS == "" {
		cfg.ProcFS = "/proc"
	}
	readers, err := choose(readers, cfg.Source, func(r reader) Source { return r.source })
	if err != nil {
		return Snapshot{}, err
	}
	if cfg.Source == SourceAuto {
		readers = autoReaders()
	}
	var refused []Refusal
	for _, r := range readers {
		source, err := r.shared(cfg.ProcFS)
		if err != nil {
			refused = append(refused, refusal(string(r.source), err))
			continue
		}
		snap, err := source.Snapshot(ctx, cfg.Query)
		if err == nil || ctx.Err() != nil || cfg.PID != 0 {
			return Snapshot{Snapshot: snap, Source: r.source, Refused: refused}, err
		}
		refused = append(refused, refusal(string(r.source), err))
	}
	return Snapshot{}, refusedError(refused)
}
