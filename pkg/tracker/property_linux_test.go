package tracker_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
)

// What TestProperty does can be set in the environment. The programs of a seed are
// those of the seeds that follow it, one each, so that a program that failed can be
// run alone.
const (
	propertySeed     = "CONNTRACE_PROPERTY_SEED"     // of the first program; a random one by default
	propertyPrograms = "CONNTRACE_PROPERTY_PROGRAMS" // how many programs to run
	propertySteps    = "CONNTRACE_PROPERTY_STEPS"    // how long each is
)

func setting(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestProperty runs random programs. Whatever they do, all sources agree with
// psutil after every step.
func TestProperty(t *testing.T) {
	testenv.Root(t)
	seed := setting(t, propertySeed, uint64(time.Now().UnixNano())%1_000_000)
	programs := uint64(6)
	if testing.Short() {
		programs = 2
	}
	programs = setting(t, propertyPrograms, programs)
	steps := setting(t, propertySteps, 40)

	psutil := startPsutil(t, root)
	done := make(map[string]int)
	for n := range programs {
		t.Run(fmt.Sprint(seed+n), func(t *testing.T) {
			p := &program{testbed: newTestbed(t), Rand: rand.New(rand.NewPCG(seed+n, 0)), done: done}
			for range 2 {
				p.players = append(p.players, &player{actor: p.actor(root)})
			}
			v := p.viewer(psutil)
			for step := range steps {
				p.step()
				diff := p.look(v)
				if step%20 == 19 {
					diff += p.lookClosely(v)
				}
				if diff != "" || t.Failed() {
					t.Fatalf("%s\n%s\nafter these calls, which %s=%d %s=1 repeats:\n%s",
						diff, "the sources disagree", propertySeed, seed+n, propertyPrograms, strings.Join(p.trace, "\n"))
				}
			}
		})
	}
	t.Logf("calls that succeeded: %v", done)
	if programs*steps < 200 {
		return
	}
	// A generator whose calls fail would prove nothing.
	for _, op := range []string{"socket", "pair", "bind", "listen", "connect", "accept", "dup", "close", "fork"} {
		if done[op] == 0 {
			t.Errorf("no %s has succeeded, only %v", op, slices.Sorted(maps.Keys(done)))
		}
	}
}

// look compares what can be told quickly: all sockets, those of a random kind, and
// those of a random process.
func (p *program) look(v *viewer) (diff string) {
	kinds := conn.KindNames()
	diff = v.disagreement(0, "all", kinds[p.IntN(len(kinds))])
	return diff + v.disagreement(p.players[p.IntN(len(p.players))].pid(), "all")
}

// lookClosely compares everything.
func (p *program) lookClosely(v *viewer) (diff string) {
	diff = v.disagreement(0, conn.KindNames()...)
	for _, who := range p.players {
		diff += v.disagreement(who.pid(), conn.KindNames()...)
	}
	v.checkDetails()
	return diff
}

// disagreement describes where our sources differ from psutil.
func (v *viewer) disagreement(pid int32, kinds ...string) (diff string) {
	v.t.Helper()
	const tries = 20
	for range tries {
		want := v.psutil.query(query{PID: pid, Kinds: kinds})
		diff = ""
		for _, source := range v.sources {
			for i, got := range v.ours.query(query{Source: source, PID: pid, Kinds: kinds}) {
				who := fmt.Sprintf("%s, %s of %d", name(source), kinds[i], pid)
				diff += difference(who, got, rowsOf(want[i]), want[i].Error)
			}
		}
		// Timers and the kernel's garbage collection go on while nobody makes a call.
		if diff == "" || equalAnswers(want, v.psutil.query(query{PID: pid, Kinds: kinds})) {
			return diff
		}
	}
	return fmt.Sprintf("the table did not come to rest in %d tries:\n%s", tries, diff)
}
