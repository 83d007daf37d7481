package tracker_test

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestConformance makes each situation in a network namespace of its own and holds
// psutil and all of our sources to what must be seen there.
func TestConformance(t *testing.T) {
	testenv.Root(t)
	psutil := startPsutil(t, root)
	for _, s := range []struct {
		name string
		make func(b *testbed, self *actor)
	}{
		{"nothing", func(*testbed, *actor) {}},
		{"listening", tcpListening},
		{"established", tcpEstablished},
		{"unaccepted", tcpUnaccepted},
		{"SYN_SENT", tcpSynSent},
		{"SYN_RECV", tcpSynRecv},
		{"FIN_WAIT2 and CLOSE_WAIT", tcpHalfClosed},
		{"FIN_WAIT1, CLOSING and LAST_ACK", tcpClosing},
		{"TIME_WAIT", tcpTimeWait},
		{"reset", tcpReset},
		{"absent", inetAbsent},
		{"udp", udp},
		{"SO_REUSEPORT", reusePort},
		{"link-local", linkLocal},
		{"kernel", kernelSocket},
		{"MPTCP", multipath},
		{"unix names", unixNames},
		{"unix odd names", unixOddNames},
		{"unix connected", unixConnected},
		{"unix unaccepted", unixUnaccepted},
		{"many", many},
	} {
		t.Run(s.name, func(t *testing.T) {
			b := newTestbed(t)
			v := b.viewer(psutil)
			s.make(b, b.self())
			v.check(int32(os.Getpid()))
		})
	}
	for _, s := range []struct {
		name string
		make func(b *testbed, self *actor) (pids []int32)
	}{
		{"dup", dups},
		{"fork", forks},
		{"SCM_RIGHTS", passed},
		{"SCM_RIGHTS nested", passedNested},
		{"own descriptor table", ownTables},
		{"leader exited", leaderless},
		{"zombie", zombie},
		{"no sockets", noSockets},
	} {
		t.Run(s.name, func(t *testing.T) {
			b := newTestbed(t)
			v := b.viewer(psutil)
			pids := s.make(b, b.self())
			v.check(append(pids, int32(os.Getpid()))...)
		})
	}
}

// An ordinary user sees every socket, but only the holders that are his.
func TestConformanceUser(t *testing.T) {
	b := newTestbed(t)
	self := b.self()
	reusePort(b, self) // rows of another user's group are equal
	fds, facts := b.sockets(self)
	own := b.actor(nobody)
	b.sockets(own)
	heir := b.fork(self, nobody, fds...) // has some of root's
	for i, f := range facts {
		f.also(heir, 3+i)
	}

	v := b.viewerAs(nobody, "denied", own.pid(), heir.pid())
	v.check(own.pid(), heir.pid(), int32(os.Getpid()))
}

// With hidepid=2 there is no trace of other users' processes.
func TestConformanceHidepid(t *testing.T) {
	b := newTestbed(t)
	self := b.self()
	fds, facts := b.sockets(self)
	own := b.actor(nobody)
	b.sockets(own)
	heir := b.fork(self, nobody, fds...)
	for i, f := range facts {
		f.also(heir, 3+i)
	}
	v := b.viewerAs(confined, "gone", own.pid(), heir.pid())
	v.check(own.pid(), heir.pid(), int32(os.Getpid()))
}

// To an ordinary user, even a zombie of his own does not show that it has no
// descriptors.
func TestConformanceZombie(t *testing.T) {
	b := newTestbed(t)
	own, foreign := b.actor(nobody), b.actor(root)
	v := b.viewerAs(nobody, "denied")
	own.kill()
	foreign.kill()
	v.check(own.pid(), foreign.pid())
}

// Processes that psutil refuses to look at, or finds nothing in.
func TestConformanceProcesses(t *testing.T) {
	psutil := startPsutil(t, root)
	b := newTestbed(t)
	b.sockets(b.self())
	v := b.viewer(psutil)
	const gone, kthreadd = math.MaxInt32, 2
	v.sees = func(pid int32) bool { return pid != gone }
	v.refusal = "gone"
	v.compare(gone)
	if _, err := os.Readlink("/proc/2/exe"); os.IsNotExist(err) { // else it is a container's
		v.compare(kthreadd)
	}
}

// A process in another network namespace has no rows, unless all namespaces are
// asked for. psutil cannot do that.
func TestConformanceNamespaces(t *testing.T) {
	psutil := startPsutil(t, root)
	there := newTestbed(t)
	alien := there.actor(root)
	there.sockets(alien)
	there.listen(alien, stacks[0], 4).link()

	t.Run("seen from another", func(t *testing.T) {
		here := newTestbed(t)
		here.sockets(here.self())
		v := here.viewer(psutil)
		v.check(int32(os.Getpid()), alien.pid())
		alone := *v
		alone.testbed = &testbed{t: t, netns: there.netns, facts: there.facts}
		for _, source := range v.sources {
			for _, pid := range []int32{0, alien.pid()} {
				a := v.ours.query(query{Source: source, PID: pid, Kinds: []string{"all"}, AllNamespaces: true})[0]
				for _, of := range []*viewer{v, &alone} {
					part := answer{Error: a.Error, Warnings: slices.DeleteFunc(slices.Clone(a.Warnings), func(w string) bool {
						return strings.HasPrefix(w, "network namespaces of") // this machine's init may be closed to its root
					})}
					for _, r := range a.Rows {
						if r.NetNS == of.netns && r.Known.Has(conn.KnownNetNS) {
							part.Rows = append(part.Rows, r)
						}
					}
					who := fmt.Sprintf("%s, all namespaces, of %d", name(source), pid)
					if diff := difference(who, part, of.rows(conn.KindAll, pid), ""); diff != "" {
						t.Errorf("\n%s", diff)
					}
				}
			}
		}
	})
}

// A unix socket's name can hold what looks like lines of /proc/net/unix. That
// fools psutil; the sources that do not read text are not, and the one that does
// says so.
func TestConformanceForgedName(t *testing.T) {
	psutil := startPsutil(t, root)
	b := newTestbed(t)
	b.psutilFails = true
	self := b.self()
	t.Chdir(t.TempDir())
	victim := self.do("socket", unix.AF_UNIX, unix.SOCK_STREAM, 0)
	self.do("bind", victim, sunPath("victim"))
	f := b.own(self, victim, conn.StatusNone)
	b.bindUnix(self, fmt.Sprintf("x\n1: 00000002 00000000 00000000 0001 01 %d forged", f.inode))

	v := b.viewer(psutil)
	all := v.sources
	v.sources = slices.DeleteFunc(slices.Clone(all), func(s tracker.Source) bool { return s == tracker.SourceProcfs })
	v.check(int32(os.Getpid()))
	if len(v.sources) == len(all) {
		t.Fatal("procfs is missing")
	}
	a := v.ours.query(query{Source: tracker.SourceProcfs, Kinds: []string{"unix"}})[0]
	if a.Error != "" || !slices.ContainsFunc(a.Warnings, func(w string) bool {
		return strings.Contains(w, "/net/unix") && strings.Contains(w, "forged")
	}) {
		t.Errorf("error %q, warnings %q", a.Error, a.Warnings)
	}
}
