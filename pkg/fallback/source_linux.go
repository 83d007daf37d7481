package fallback

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/conntrace/conntrace/internal/procinfo"
	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/pkg/conn"
)

// A table is one of the kernel's socket tables.
type table struct {
	kind   conn.Kind
	family conn.Family
	typ    conn.Type // any, if 0
	file   string    // name in /proc/PID/net
}

// optional reports whether the kernel may lack t: it does where IPv6 is off.
func (t *table) optional() bool { return t.family == conn.Inet6 }

// tables lists the tables in psutil's order.
var tables = [...]table{
	{conn.KindTCP4, conn.Inet, conn.Stream, "tcp"},
	{conn.KindTCP6, conn.Inet6, conn.Stream, "tcp6"},
	{conn.KindUDP4, conn.Inet, conn.Datagram, "udp"},
	{conn.KindUDP6, conn.Inet6, conn.Datagram, "udp6"},
	{conn.KindUnix, conn.Unix, 0, "unix"},
}

// Tables is one half of a source: it reads the socket tables of a network
// namespace.
type Tables interface {
	// Home returns the namespace that is read unless a query asks for all.
	Home() Namespace

	// Read appends the sockets of ns that are of the kinds, without an owner, to
	// s.Conns, and what it could not understand to s.Warnings.
	Read(ctx context.Context, ns Namespace, kinds conn.Kind, s *Snapshot) error
}

// Holders is the other half: it reads which process has a descriptor of which
// socket.
type Holders interface {
	// Append appends the holdings of every process, ascending by (PID, FD), to dst, and
	// returns how many processes may not be read.
	Append(ctx context.Context, dst []Holding) (holdings []Holding, hidden int, err error)
}

// A linuxSource joins socket tables with who holds the sockets.
type linuxSource struct {
	name    string
	root    string // of procfs
	procs   *procinfo.Reader
	tables  Tables
	holders Holders

	size atomic.Int64 // of the last answer: room for the next one
	pool sync.Pool    // of *scratch

	mu        sync.Mutex
	strangers map[uint64]bool // inodes that nobody held in the last answer; nil: it cannot be told
}

// scratch is memory that only lasts as long as a snapshot is made.
type scratch struct {
	holdings []Holding
	index    holderIndex
}

// NewSource returns a source that joins tables with holders into rows. What else
// there is to know of processes it reads in the procfs at root.
func NewSource(name, root string, tables Tables, holders Holders) (Source, error) {
	procs, err := procinfo.New(root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &linuxSource{name: name, root: root, procs: procs, tables: tables, holders: holders}, nil
}

func (s *linuxSource) Name() string { return s.name }

func (s *linuxSource) Snapshot(ctx context.Context, q Query) (Snapshot, error) {
	snap, err := s.snapshot(ctx, q)
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s: %w", s.name, err)
	}
	return snap, nil
}

func (s *linuxSource) snapshot(ctx context.Context, q Query) (snap Snapshot, err error) {
	if err := q.Kind.Check(); err != nil {
		return snap, err
	}
	if q.PID != 0 {
		if _, err := s.procs.Lookup(q.PID); err != nil {
			return snap, err
		}
	}
	m, _ := s.pool.Get().(*scratch)
	if m == nil {
		m = new(scratch)
	}
	defer s.pool.Put(m)

	if s.mayOverlap(q) {
		if snap, err = s.read(ctx, q, m, true); err != nil {
			return snap, err
		}
		if s.knowsStrangers(snap.Conns) {
			s.addProcesses(snap.Conns)
			return snap, nil
		}
	}
	if snap, err = s.read(ctx, q, m, false); err != nil {
		return snap, err
	}
	s.rememberStrangers(q, &snap)
	s.addProcesses(snap.Conns)
	return snap, nil
}

// read makes the rows that answer q, without details of their processes.
//
// The descriptors are read after the tables: a socket in a table has its owner then
// unless it was closed meanwhile. If both are read at once, a socket that is opened
// meanwhile may come out without one.
func (s *linuxSource) read(ctx context.Context, q Query, m *scratch, atOnce bool) (snap Snapshot, err error) {
	expected := int(s.size.Load())
	if expected == 0 {
		expected = sysinfo.SocketsInUse()
	}
	snap.Conns = make([]conn.Conn, 0, expected+expected/16)

	var holdersErr error
	readHolders := func() {
		m.holdings, snap.Hidden, holdersErr = s.readHolders(ctx, m.holdings[:0], q)
		m.index.build(m.holdings, q.PID)
	}
	var wg sync.WaitGroup
	if atOnce {
		wg.Go(readHolders)
	}
	err = s.readTables(ctx, q, &snap) // in the caller's thread, and so in its namespace
	wg.Wait()
	if err == nil && !atOnce {
		readHolders()
	}
	if err = errors.Join(err, holdersErr); err != nil {
		return Snapshot{}, err
	}
	s.size.Store(int64(len(snap.Conns)))
	snap.Conns = join(snap.Conns, &m.index, q)
	if q.Strays {
		snap.Strays = m.index.strays()
	}
	return snap, nil
}

// mayOverlap reports whether tables and descriptors may be read at once: if it can
// be told afterwards that no owner was missed.
func (s *linuxSource) mayOverlap(q Query) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.strangers != nil && q.PID == 0
}

// knowsStrangers reports whether every socket that exists but that nobody holds was
// so before. There are few: such as are in flight from one process to another, and
// the kernel's own.
func (s *linuxSource) knowsStrangers(rows []conn.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range rows {
		if c := &rows[i]; c.PID == 0 && c.Inode != 0 && !s.strangers[c.Inode] {
			return false
		}
	}
	return true
}

func (s *linuxSource) rememberStrangers(q Query, snap *Snapshot) {
	if q.PID != 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strangers = nil
	if snap.Hidden > 0 {
		return // the sockets of hidden processes are all strangers, and many
	}
	s.strangers = make(map[uint64]bool)
	for i := range snap.Conns {
		if c := &snap.Conns[i]; c.PID == 0 && c.Inode != 0 {
			s.strangers[c.Inode] = true
		}
	}
}

// readTables reads the tables of every namespace that q asks for.
func (s *linuxSource) readTables(ctx context.Context, q Query, snap *Snapshot) error {
	home := s.tables.Home()
	if err := s.readNamespace(ctx, home, q.Kind, snap); err != nil || !q.AllNamespaces {
		return err
	}
	others, err := otherNamespaces(s.root, home, snap)
	if err != nil {
		return err
	}
	for _, ns := range others {
		if err := s.readOther(ctx, ns, q.Kind, snap); err != nil {
			return err
		}
	}
	return nil
}

// readOther reads the tables of a namespace that is not home. A warning says why, if
// they cannot be read; it is none that nobody is in the namespace any more.
func (s *linuxSource) readOther(ctx context.Context, ns Namespace, kinds conn.Kind, snap *Snapshot) error {
	first := len(snap.Conns)
	for {
		err := s.readNamespace(ctx, ns, kinds, snap)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		snap.Conns = snap.Conns[:first]
		if !left(err) {
			snap.Warnings = append(snap.Warnings, fmt.Errorf("network namespace %d: %w", ns.inode, err))
			return nil
		}
		if len(ns.others) == 0 {
			return nil
		}
		ns.dir, ns.others = ns.others[0], ns.others[1:]
	}
}

// readNamespace reads the tables of ns.
func (s *linuxSource) readNamespace(ctx context.Context, ns Namespace, kinds conn.Kind, snap *Snapshot) error {
	first, warnings := len(snap.Conns), len(snap.Warnings)
	if err := s.tables.Read(ctx, ns, kinds, snap); err != nil {
		return err
	}
	if len(snap.Warnings) == warnings {
		snap.Namespaces = append(snap.Namespaces, ns.inode)
	}
	if ns.inode != 0 {
		for i := first; i < len(snap.Conns); i++ {
			c := &snap.Conns[i]
			c.NetNS = ns.inode
			c.Known |= conn.KnownNetNS
		}
	}
	return nil
}

// readHolders appends the descriptors that matter to q, ascending by (PID, FD).
// hidden counts the processes that may not be read.
func (s *linuxSource) readHolders(ctx context.Context, dst []Holding, q Query) (holders []Holding, hidden int, err error) {
	if q.PID != 0 {
		holders, err = appendHoldersOf(dst, s.root, q.PID)
		if err != nil || !q.Holders || len(holders) == 0 {
			return holders, 0, err
		}
	}
	return s.holders.Append(ctx, dst)
}

// addProcesses fills in what is known of the owners. Rows of one process share
// it. It is left unknown for a process that has ended meanwhile.
func (s *linuxSource) addProcesses(rows []conn.Conn) {
	procs := make(map[int32]*conn.Process)
	var last int32 // rows of a process often follow each other
	var p *conn.Process
	for i := range rows {
		c := &rows[i]
		if c.PID == 0 {
			continue
		}
		if c.PID != last {
			var ok bool
			if p, ok = procs[c.PID]; !ok {
				p, _ = s.procs.Lookup(c.PID)
				procs[c.PID] = p
			}
			last = c.PID
		}
		c.Process = p
	}
}
