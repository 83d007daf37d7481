package tracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/internal/procinfo"
	"github.com/conntrace/conntrace/internal/ringbuf"
	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// live is the backend that is fed by BPF programs.
//
// One goroutine (run) waits for the ring buffer, lets records gather for a moment,
// and drains it into the table and the hub. Whoever needs the table as of now
// drains it too; mu makes them take turns. Scans of the kernel's tables run beside
// and are merged under mu.
type live struct {
	cfg   Config
	hooks *hooks
	ring  *ringbuf.Reader
	hub   *hub
	netns uint32 // the namespace that Connections shows; 0: every one

	mu        sync.Mutex
	table     *table
	processes *processCache
	batch     []conn.Event  // about to be published
	wall      time.Duration // what to add to CLOCK_MONOTONIC to get the wall clock
	account   Stats         // Delivered, Reconciled, Polls
	lost      uint64        // losses in the kernel that a gap event has told
	skips     skips         // of these: runs of hooks
	closed    bool

	scanMu   sync.Mutex // one scan at a time
	lastScan time.Time  // when it began; guarded by scanMu

	repair chan struct{} // holds a token when events were lost
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

const (
	// gather is how long records wait for company after the first one has woken the
	// reader: it bounds the number of wake-ups, and the delay of an event.
	gather = 10 * time.Millisecond

	// housekeeping is the longest time between two looks at the account.
	housekeeping = 2 * time.Second

	// audit is the time between two scans although nothing is known to be lost: they
	// find what the kernel has neither shown nor counted.
	audit = time.Minute
)

// openLive attaches first and scans second, so that nothing falls in between.
func openLive(ctx context.Context, cfg Config, h *hub) (backend, Info, error) {
	linux := sysinfo.Read().Linux
	// Without these the kernel's errors are many, and most say something else.
	if len(missingCapabilities(linux, bpfCapabilities...)) > 0 {
		return nil, Info{}, unix.EPERM
	}
	reader, err := procinfo.New(cfg.ProcFS)
	if err != nil {
		return nil, Info{}, err
	}
	netns, err := currentNetNS()
	if err != nil {
		return nil, Info{}, err
	}
	if cfg.AllNamespaces {
		netns = 0
	}
	hooks, err := attachHooks(cfg)
	if err != nil {
		return nil, Info{}, err
	}
	ring, err := ringbuf.New(hooks.shared.Maps[bpf.TrackerMapEvents])
	if err != nil {
		return nil, Info{}, errors.Join(err, hooks.close())
	}
	l := &live{
		cfg: cfg, hooks: hooks, ring: ring, hub: h, netns: netns,
		table: newTable(), processes: newProcessCache(reader), batch: make([]conn.Event, 0, batchSize),
		repair: make(chan struct{}, 1),
	}
	if l.table.states, err = mapStates(hooks.shared.Maps[bpf.TrackerMapStates]); err != nil {
		return nil, Info{}, errors.Join(err, ring.Close(), hooks.close())
	}
	if err := l.scan(ctx, false); err != nil {
		return nil, Info{}, errors.Join(fmt.Errorf("read the sockets that exist: %w", err), l.table.states.close(), ring.Close(), hooks.close())
	}
	// Nobody was there yet to whom the sockets that exist would have been news.
	l.account.Reconciled = 0
	h.flush = l.flush

	background, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.wg.Go(l.run)
	l.wg.Go(func() { l.repairLoop(background) })
	info := Info{Hooks: hooks.info, Refused: hooks.refused, Limits: hooks.limits}
	if !linux.HostPIDs {
		info.Limits = append(info.Limits, "the PIDs of events are the host's, not those of this PID namespace, and executables stay unknown")
	}
	return l, info, nil
}

// currentNetNS returns the inode number of the caller's network namespace.
func currentNetNS() (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: "/proc/thread-self/ns/net", Err: err}
	}
	return uint32(st.Ino), nil
}

// run drains the ring buffer until the tracker is closed.
func (l *live) run() {
	patience := housekeeping
	for {
		if err := l.ring.Wait(int(patience.Milliseconds())); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				l.cfg.Logger.Error("the stream of events has ended", "err", err)
			}
			return
		}
		if l.ring.Used() > 0 {
			time.Sleep(gather)
		}
		l.mu.Lock()
		l.drain()
		l.checkLosses(false)
		patience = housekeeping
		if l.skips.pending() {
			patience = settled
		}
		l.mu.Unlock()
	}
}

// drain applies everything that is in the ring buffer. mu is held.
func (l *live) drain() {
	if l.closed {
		return
	}
	l.wall = wallOffset()
	n, err := l.ring.Drain(l.apply)
	l.publish()
	l.account.Delivered += uint64(n)
	if err != nil {
		l.cfg.Logger.Error("cannot read the ring buffer", "err", err)
	}
}

// apply brings a record into the table. mu is held.
func (l *live) apply(raw []byte) {
	r, err := decode(raw)
	if err != nil {
		l.cfg.Logger.Error("dropped a record", "err", err)
		return
	}
	var owner *conn.Process
	if r.owned != nil && r.owned.Owner.Pid != 0 {
		owner = l.processes.get(&r.owned.Owner)
	}
	at := l.time(r.header.Time)
	if l.cfg.States && l.table.state(r, owner, at, l.next()) {
		l.keep()
	}
	if e := l.next(); l.table.apply(r, owner, at, e) {
		if e.Type == conn.EventListen && !e.Laddr.IsValid() {
			l.locate(e)
		}
		l.keep()
	}
}

// locate finds out on what port e's socket listens: listen(2) chooses one for a socket
// that has none after the kernel has told of LISTEN (inet_csk_listen_start()). mu is
// held.
func (l *live) locate(e *conn.Event) {
	laddr, err := localAddr(&e.Conn)
	if err != nil {
		l.cfg.Logger.Debug("on what port a socket listens is not known before it is looked for", "err", err)
		l.table.holders.expire(l.table.clock)
		l.needRepair()
		return
	}
	e.Laddr = laddr
	l.table.sockets[e.Cookie].row.Laddr = laddr
}

// next returns where the next event is to be made. It is published once it is kept.
func (l *live) next() *conn.Event {
	if len(l.batch) == cap(l.batch) {
		l.publish()
	}
	return &l.batch[:len(l.batch)+1][len(l.batch)]
}

func (l *live) keep() { l.batch = l.batch[:len(l.batch)+1] }

// batchSize is how many events are handed to the subscriptions at a time.
const batchSize = 256

// publish hands out the events that are ready. mu is held.
func (l *live) publish() {
	l.hub.publish(l.batch...)
	l.batch = l.batch[:0]
}

// flush publishes everything that has happened until now, losses included.
func (l *live) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	l.checkLosses(false)
}

// wallOffset returns what to add to CLOCK_MONOTONIC, which BPF reads, to get the
// wall clock.
func wallOffset() time.Duration {
	var monotonic unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &monotonic) // cannot fail: the clock exists
	return time.Duration(time.Now().UnixNano() - monotonic.Nano())
}

func (l *live) time(monotonic uint64) time.Time {
	return time.Unix(0, int64(monotonic)+int64(l.wall))
}

// checkLosses tells of events that were lost on the way to the ring buffer, and
// has the table repaired. mu is held. At the end no skip is waited for.
func (l *live) checkLosses(end bool) {
	if l.closed {
		return
	}
	account, err := l.hooks.account()
	if err != nil {
		l.cfg.Logger.Error("cannot tell what was lost", "err", err)
		return
	}
	lost := account.Lost.Events()
	if !end {
		lost += l.skips.lasting(account.Lost.Recursion, time.Now()) - account.Lost.Recursion
	}
	if lost <= l.lost {
		return
	}
	l.hub.publish(gapEvent(time.Now(), lost-l.lost))
	l.lost = lost
	l.needRepair()
}

func (l *live) needRepair() {
	select {
	case l.repair <- struct{}{}:
	default:
	}
}

// repairLoop scans whenever it is needed, and now and then.
func (l *live) repairLoop(ctx context.Context) {
	var tick, again <-chan time.Time
	if l.cfg.Freshness >= 0 {
		ticker := time.NewTicker(audit)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.repair:
		case <-tick:
		case <-again:
		}
		again = nil
		if err := l.scan(ctx, true); err != nil && ctx.Err() == nil {
			l.cfg.Logger.Error("cannot repair the table after a loss", "err", err)
		} else if l.awaitsFarewell() {
			again = time.After(farewell)
		}
	}
}

// awaitsFarewell reports whether another scan shall confirm that namespaces are gone.
func (l *live) awaitsFarewell() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.table.absent) > 0
}

// scan reads the kernel's own tables and merges them into ours. To repair is to look
// for namespaces that are gone, too.
func (l *live) scan(ctx context.Context, repair bool) error {
	l.scanMu.Lock()
	defer l.scanMu.Unlock()
	return l.scanLocked(ctx, repair)
}

func (l *live) scanLocked(ctx context.Context, repair bool) error {
	began := time.Now()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return errClosed
	}
	l.drain()
	start := l.table.beginScan()
	l.mu.Unlock()

	snap, err := TakeSnapshot(ctx, SnapshotConfig{
		ProcFS: l.cfg.ProcFS,
		Query:  fallback.Query{Kind: conn.KindTCP, Holders: true, AllNamespaces: true, Strays: repair},
	})

	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.table.abortScan()
		return err
	}
	if l.closed {
		return errClosed
	}
	level := slog.LevelWarn
	if !l.lastScan.IsZero() {
		level = slog.LevelDebug // as a rule it has been said before
	}
	for _, w := range snap.Warnings {
		l.cfg.Logger.Log(ctx, level, "a part of the socket tables was not seen: "+w.Error())
	}
	l.drain()
	l.table.merge(&snap.Snapshot, start, time.Now(), func(e *conn.Event) {
		l.account.Reconciled++
		l.hub.publish(*e)
	})
	l.account.Polls++
	l.lastScan = began
	return nil
}

// refresh scans if the last scan is older than cfg.Freshness.
func (l *live) refresh(ctx context.Context) error {
	if l.cfg.Freshness < 0 {
		return nil
	}
	l.scanMu.Lock()
	defer l.scanMu.Unlock()
	if time.Since(l.lastScan) <= l.cfg.Freshness && !l.stale() {
		return nil
	}
	return l.scanLocked(ctx, false)
}

// stale reports whether processes that hold sockets have forked, run another program
// or exited since the last scan.
func (l *live) stale() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	return l.table.holders.stale
}

func (l *live) appendConnections(dst []conn.Conn, kind conn.Kind) ([]conn.Conn, error) {
	if kind&conn.KindTCP != 0 {
		if err := l.refresh(context.Background()); err != nil {
			return dst, err
		}
	}
	// What is not TCP is not tracked: it is asked for.
	if other := kind &^ conn.KindTCP; other != 0 {
		snap, err := TakeSnapshot(context.Background(), SnapshotConfig{ProcFS: l.cfg.ProcFS, Query: fallback.Query{Kind: other, AllNamespaces: l.cfg.AllNamespaces}})
		if err != nil {
			return dst, err
		}
		dst = append(dst, snap.Conns...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return dst, errClosed
	}
	l.drain()
	return l.table.appendRows(dst, kind, l.netns), nil
}

func (l *live) subscribe(f Filter) (*Subscription, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	l.drain()
	var seeds []conn.Event
	if !f.NoSeed {
		seeds = l.table.seeds(time.Now())
	}
	return l.hub.add(f, seeds)
}

func (l *live) stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.drain()
		l.updateAccount()
	}
	return l.account
}

// updateAccount reads the kernel's part of the account. mu is held.
func (l *live) updateAccount() {
	account, err := l.hooks.account()
	if err != nil {
		l.cfg.Logger.Error("cannot read the account", "err", err)
		return
	}
	l.account.Seen, l.account.Lost = account.Seen, account.Lost
	l.account.Connections = len(l.table.sockets)
}

func (l *live) close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	detachErr := l.hooks.detach() // what was seen until now is still delivered, or told as lost
	l.drain()
	l.checkLosses(true)
	l.updateAccount()
	l.closed = true
	l.mu.Unlock()

	l.cancel()
	l.ring.Interrupt()
	l.wg.Wait()
	l.scanMu.Lock() // a scan on behalf of Connections
	defer l.scanMu.Unlock()
	return errors.Join(detachErr, l.table.states.close(), l.ring.Close(), l.hooks.close())
}
