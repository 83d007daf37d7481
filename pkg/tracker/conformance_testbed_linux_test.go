package tracker_test

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// A testbed is a network namespace in which a test makes sockets. It knows all of
// them, as facts: every answer must be exactly what follows from the facts, which
// leaves no room for a row too many.
type testbed struct {
	t     *testing.T
	netns uint32
	facts []*fact

	// psutilFails says that psutil is known to be wrong about these facts. Then only
	// our sources are held to them.
	psutilFails bool
}

// A fact is a socket as the test that made it knows it.
type fact struct {
	family       conn.Family
	typ          conn.Type
	laddr, raddr conn.Addr
	status       conn.Status
	holders      []conn.Holder

	details details // whether the rest is known
	inode   uint64
	cookie  uint64
	uid     uint32
}

// details says what of a fact is known.
type details uint8

const (
	unknown details = iota
	noInode         // that there is no inode
	full
)

// newTestbed moves the calling goroutine and its thread to a new network namespace
// for the length of the test. Processes that it starts from now on are there too.
func newTestbed(t *testing.T) *testbed {
	t.Helper()
	testenv.Root(t)
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		testenv.Missing(t, "network namespaces: "+err.Error())
	}
	t.Cleanup(func() {
		must(t, unix.Setns(int(home.Fd()), unix.CLONE_NEWNET))
		home.Close()
		runtime.UnlockOSThread()
	})
	must(t, loopbackUp())
	var st unix.Stat_t
	must(t, unix.Stat("/proc/thread-self/ns/net", &st))
	return &testbed{t: t, netns: uint32(st.Ino)}
}

// A viewer is a user who asks psutil and our sources.
type viewer struct {
	*testbed
	psutil, ours oracle
	sources      []tracker.Source
	sees         func(pid int32) bool // may read the descriptors of a process
	refusal      string               // what the viewer gets for the other processes
}

// viewer returns root as a viewer.
func (b *testbed) viewer(psutil oracle) *viewer {
	b.t.Helper()
	psutil.t = b.t
	psutil.enter()
	return b.newViewer(root, psutil, func(int32) bool { return true }, "")
}

// viewerAs returns a viewer who is an ordinary user, or hides.
func (b *testbed) viewerAs(as user, refusal string, pids ...int32) *viewer {
	b.t.Helper()
	return b.newViewer(as, startPsutil(b.t, as), func(pid int32) bool { return slices.Contains(pids, pid) }, refusal)
}

func (b *testbed) newViewer(as user, psutil oracle, sees func(int32) bool, refusal string) *viewer {
	b.t.Helper()
	v := &viewer{testbed: b, psutil: psutil, ours: oracle{startAs(b.t, "ask", as)}, sees: sees, refusal: refusal}
	for _, source := range append([]tracker.Source{tracker.SourceAuto}, tracker.Sources()...) {
		switch a := v.ours.query(query{Source: source, Kinds: []string{"all"}})[0]; {
		case a.Error == "unsupported":
			b.t.Logf("%s: not for snapshots on this system", name(source))
		case a.Error == "denied" && source == tracker.SourceEBPF && as != root:
			b.t.Logf("%s: not for this user", name(source))
		case a.Error != "":
			b.t.Fatalf("%s: %s", name(source), a.Error)
		default:
			v.sources = append(v.sources, source)
		}
	}
	return v
}

func name(source tracker.Source) string {
	if source == tracker.SourceAuto {
		return "auto"
	}
	return string(source)
}

// rows returns what follows from the facts: the rows of kind that v must get for
// the process pid, or for the whole system if pid is 0.
func (v *viewer) rows(kind conn.Kind, pid int32) []psRow {
	rows := make(map[psRow]bool) // no two rows are equal
	for _, f := range v.facts {
		if c := (conn.Conn{Family: f.family, Type: f.typ}); !kind.Has(c.Kind()) {
			continue
		}
		row := psRow{
			FD: -1, Family: uint16(f.family), Type: uint8(f.typ),
			Laddr: formatAddr(f.laddr), Raddr: formatAddr(f.raddr), Status: f.status.String(),
		}
		fds := make(map[int32][]int32) // of each process that v sees
		for _, h := range f.holders {
			if v.sees(h.PID) && (pid == 0 || pid == h.PID) {
				fds[h.PID] = append(fds[h.PID], h.FD)
				row.PID = max(row.PID, h.PID)
			}
		}
		switch own := fds[row.PID]; {
		case len(own) > 0 && f.family == conn.Unix:
			for _, fd := range own {
				row.FD = fd
				rows[row] = true
			}
		case len(own) > 0:
			row.FD = slices.Min(own)
			rows[row] = true
		case pid == 0:
			rows[row] = true
		}
	}
	var all []psRow
	for row := range rows {
		all = append(all, row)
	}
	return all
}

// check holds psutil and every source to the facts: every kind, of the whole
// system and of each process.
func (v *viewer) check(pids ...int32) {
	v.t.Helper()
	if !v.psutilFails {
		v.settle()
	}
	for _, pid := range append([]int32{0}, pids...) {
		v.compare(pid)
	}
	v.checkDetails()
}

// settle waits until the kernel has done what the test caused, such as to take a
// connection to TIME_WAIT. It asks psutil alone, as it shall not make up for what
// our sources do wrong.
func (v *viewer) settle() {
	v.t.Helper()
	want := v.rows(conn.KindAll, 0)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		a := v.psutil.query(query{Kinds: []string{"all"}})[0]
		diff := difference("psutil", a, want, "")
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			v.t.Fatalf("the test's facts do not come true:\n%s", diff)
		}
	}
}

func (v *viewer) compare(pid int32) {
	v.t.Helper()
	kinds := conn.KindNames()
	refusal := ""
	if pid != 0 && !v.sees(pid) {
		refusal = v.refusal
	}
	for range 10 {
		diff := ""
		add := func(who string, answers []answer) {
			for i, kind := range kinds {
				k, err := conn.ParseKind(kind)
				must(v.t, err)
				want := v.rows(k, pid)
				if refusal != "" {
					want = nil
				}
				diff += difference(who+", "+kind+" of "+strconv.Itoa(int(pid)), answers[i], want, refusal)
			}
		}
		before := v.psutil.query(query{PID: pid, Kinds: kinds})
		if !v.psutilFails {
			add("psutil", before)
		}
		for _, source := range v.sources {
			add(name(source), v.ours.query(query{Source: source, PID: pid, Kinds: kinds}))
		}
		if diff == "" {
			return
		}
		// Only where psutil itself says something else than a moment ago are the answers
		// about different moments.
		if equalAnswers(before, v.psutil.query(query{PID: pid, Kinds: kinds})) {
			v.t.Errorf("\n%s", diff)
			return
		}
	}
	v.t.Error("the table does not come to rest")
}

func equalAnswers(a, b []answer) bool {
	return slices.EqualFunc(a, b, func(a, b answer) bool {
		return a.Error == b.Error && difference("", a, rowsOf(b), a.Error) == ""
	})
}

func rowsOf(a answer) []psRow {
	var rows []psRow
	for _, r := range a.Rows {
		rows = append(rows, r.psRow)
	}
	return rows
}

// difference describes where the answer that who gave differs from the rows and
// the refusal that it must consist of; "" if it does not.
func difference(who string, a answer, want []psRow, refusal string) string {
	var b strings.Builder
	if a.Error != refusal {
		fmt.Fprintf(&b, "%s: error %q, want %q\n", who, a.Error, refusal)
	}
	for _, w := range a.Warnings {
		fmt.Fprintf(&b, "%s: warning: %s\n", who, w)
	}
	count := make(map[psRow]int)
	for _, r := range want {
		count[r]++
	}
	for _, r := range a.Rows {
		count[r.psRow]--
	}
	for r, n := range count {
		switch {
		case n > 0:
			fmt.Fprintf(&b, "%s: missing: %v\n", who, r)
		case n < 0:
			fmt.Fprintf(&b, "%s: %d too many: %v\n", who, -n, r)
		}
	}
	return b.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
