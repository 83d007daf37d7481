package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/scripts/bench/turns"
)

const (
	cores       = 2 // that everything runs on
	rounds      = 5
	settle      = 500 * time.Millisecond // until an observer has caught up
	startUp     = time.Second            // from when it has attached its last program
	patience    = 20 * time.Second       // until it has
	idleFor     = 10 * time.Second
	liveSockets = 100_000 // for the memory that one takes
	liveSettle  = 3 * time.Second
)

// pairs is how many clients run at a time, each with its server: enough to keep all
// CPUs busy while some wait.
func pairs() int { return 2 * cores }

// benchStream measures what watching costs, at a saturating load.
func benchStream(duration time.Duration, load string) error {
	return benchObservers("Watching saturating loopback churn", observers(), measureIdle, duration, load, printCost, printIdle)
}

// benchTiers measures what each way to see costs, at the same load.
func benchTiers(duration time.Duration, load string) error {
	return benchObservers("Ways to see saturating loopback churn", tiers(), tryAll, duration, load)
}

// benchObservers runs the observers that prepare leaves, and prints what they cost and
// lose; more prints the rest.
func benchObservers(title string, all []*observer, prepare func([]*observer) error, duration time.Duration, load string, more ...func([]*observer)) error {
	where, err := describe()
	if err != nil {
		return err
	}
	if err := pinAll(); err != nil {
		return err
	}
	// Private to this mount namespace. What cannot be mounted is the observer's trouble,
	// in its own words.
	unix.Mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, "")
	foreign, err := foreignPrograms()
	if err != nil {
		return err
	}

	if err := prepare(all); err != nil {
		return err
	}
	present := slices.DeleteFunc(slices.Clone(all), func(o *observer) bool { return o.absent != "" })
	fmt.Fprintf(os.Stderr, "bench: %d rounds of load: ", rounds)
	none, err := measureLoad(present, duration, load)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr)
	fmt.Fprintln(os.Stderr, "bench: load with kernel statistics")
	empty, err := measureKernel(seeing(present), duration, load)
	if err != nil {
		return err
	}

	fmt.Printf("## %s on %d cores\n\n%s", title, cores, where)
	if versions := observerVersions(present); len(versions) > 0 {
		fmt.Printf("- peers: %s\n", strings.Join(versions, ", "))
	}
	fmt.Printf("- load: %d clients and as many servers, load %q, %.0f connections/s without an observer (median of %d runs of %v)\n",
		pairs(), load, median(none), len(none), duration)
	if foreign > 0 {
		fmt.Printf("- %d BPF tracing programs of others were loaded before this began: \"without an observer\" is not quite that\n", foreign)
	}
	printThroughput(present, none)
	printLoss(seeing(present))
	for _, print := range more {
		print(seeing(present))
	}
	printKernel(seeing(present), empty)
	fmt.Println()
	for _, o := range all {
		if o.absent != "" {
			fmt.Printf("- %s takes no part: %s\n", o.name, o.absent)
		}
	}
	return nil
}

// pinAll keeps this process, and all that it starts, on the first CPUs that it may use.
func pinAll() error {
	var allowed, use unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return err
	}
	for cpu := 0; use.Count() < min(cores, allowed.Count()); cpu++ {
		if allowed.IsSet(cpu) {
			use.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &use); err != nil { // of the main thread, which starts all others
		return fmt.Errorf("sched_setaffinity: %w", err)
	}
	return nil
}

// foreignPrograms counts the programs that trace already.
func foreignPrograms() (n int, err error) {
	for id := ebpf.ProgramID(0); ; {
		id, err = ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("list BPF programs: %w", err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone
		}
		switch p.Type() {
		case ebpf.Tracing, ebpf.TracePoint, ebpf.RawTracepoint, ebpf.Kprobe:
			n++
		}
		p.Close()
	}
}

// tryAll finds out which observers can be run here.
func tryAll(all []*observer) error {
	fmt.Fprintln(os.Stderr, "bench: which can be run")
	for _, o := range all {
		w, err := o.start()
		if err != nil {
			return err
		}
		w.awaitPrograms()
		if !w.running() {
			o.absent = w.complaint()
			w.out.Close()
			continue
		}
		if _, err := w.stop(); err != nil {
			return err
		}
	}
	return nil
}

// measureIdle runs all observers while nothing happens, and finds out which ones
// can be run here.
func measureIdle(all []*observer) error {
	fmt.Fprintln(os.Stderr, "bench: idle")
	var watches []*watch
	for _, o := range all {
		if o.absent != "" {
			continue
		}
		w, err := o.start()
		if err != nil {
			return err
		}
		watches = append(watches, w)
	}
	time.Sleep(2 * startUp)
	watches = slices.DeleteFunc(watches, func(w *watch) bool {
		if w.running() {
			return false
		}
		w.absent = w.complaint()
		return true
	})
	before := make(map[*watch]int)
	for _, w := range watches {
		before[w] = switches(w.pid())
	}
	time.Sleep(idleFor)
	for _, w := range watches {
		w.wakeups = float64(switches(w.pid())-before[w]) / idleFor.Seconds()
		w.rss, w.hwm = statusBytes(w.pid(), "VmRSS"), statusBytes(w.pid(), "VmHWM")
	}

	holders, err := holdSockets(liveSockets)
	if err == nil {
		time.Sleep(liveSettle)
		for _, w := range watches {
			w.perSocket = max(0, statusBytes(w.pid(), "VmRSS")-w.rss) / liveSockets
		}
	}
	release(holders)
	for _, w := range watches {
		_, stopErr := w.stop()
		err = errors.Join(err, stopErr)
	}
	return err
}

// churn runs the load generator.
func churn(duration time.Duration, load string) (turns.Load, error) {
	var l turns.Load
	var out bytes.Buffer
	cmd := exec.Command(program("churn"), duration.String(), strconv.Itoa(pairs()), load)
	cmd.Stdout = &out
	c, err := start(cmd)
	if err != nil {
		return l, err
	}
	if err := c.wait(duration + 30*time.Second); err != nil {
		return l, err
	}
	if c.err != nil {
		return l, fmt.Errorf("churn: %s", c.complaint())
	}
	if err := json.Unmarshal(out.Bytes(), &l); err != nil {
		return l, err
	}
	if l.Accepts != l.Connects || l.Connects == 0 {
		return l, fmt.Errorf("churn: %d connects, %d accepts, %d failures", l.Connects, l.Accepts, l.Failures)
	}
	return l, nil
}

// measureLoad runs the load without and with each observer in turns, and compares
// each run with the two without that surround it. It returns the rates without.
func measureLoad(all []*observer, duration time.Duration, load string) (none []float64, err error) {
	without := func() error {
		l, err := churn(duration, load)
		none = append(none, float64(l.Connects)/l.Seconds)
		return err
	}
	if _, err := churn(duration, load); err != nil { // warms up
		return nil, err
	}
	if err := without(); err != nil {
		return nil, err
	}
	for range rounds {
		for _, o := range all {
			fmt.Fprint(os.Stderr, ".")
			if err := o.measure(duration, load); err != nil {
				return nil, err
			}
			if err := without(); err != nil {
				return nil, err
			}
			with, base := o.rates[len(o.rates)-1], (none[len(none)-2]+none[len(none)-1])/2
			o.ratios = append(o.ratios, with/base)
			// All cores are busy either way: what fewer connections took is the observer's.
			o.costs = append(o.costs, cores*1e6*(1/with-1/base))
		}
	}
	return none, nil
}

// measure runs the load once with the observer.
func (o *observer) measure(duration time.Duration, load string) error {
	w, err := o.start()
	if err != nil {
		return err
	}
	w.awaitPrograms()
	user, sys, err := cpuTime(w.pid())
	if err != nil {
		return err
	}
	l, err := churn(duration, load)
	if err != nil {
		return err
	}
	time.Sleep(settle)
	userAfter, sysAfter, err := cpuTime(w.pid())
	if err != nil {
		return err
	}
	o.user += userAfter - user
	o.system += sysAfter - sys
	o.hwmAfter = max(o.hwmAfter, statusBytes(w.pid(), "VmHWM"))
	o.rates = append(o.rates, float64(l.Connects)/l.Seconds)
	seen, err := w.stop()
	if err != nil {
		return err
	}
	o.connections += l.Connects
	if o.expect == nil {
		return nil
	}
	for typ, n := range o.expect(l) {
		o.expected += n
		o.seen += seen[typ]
		if seen[typ] < n {
			o.missing += n - seen[typ]
		} else {
			o.more += seen[typ] - n
		}
	}
	o.rows += seen["all"]
	o.account = w.ownWords(seen)
	return nil
}

// measureKernel runs the load once with each observer while the kernel times BPF
// programs. It returns how long an empty program takes: what the clock takes itself.
func measureKernel(all []*observer, duration time.Duration, load string) (empty float64, err error) {
	// Unlike the sysctl kernel.bpf_stats_enabled this ends with the process at the latest.
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return 0, fmt.Errorf("enable BPF statistics: %w", err)
	}
	defer stats.Close()
	for _, o := range all {
		w, err := o.start()
		if err != nil {
			return 0, err
		}
		w.awaitPrograms()
		before := programRuns(w.pid())
		l, err := churn(duration, load)
		if err != nil {
			return 0, err
		}
		o.programsServed = l.Connects
		for id, after := range programRuns(w.pid()) {
			r := kernelRun{programName(id), after.count - before[id].count, after.ns - before[id].ns}
			if r.count > 0 {
				o.programs = append(o.programs, r)
			}
		}
		if _, err := w.stop(); err != nil {
			return 0, err
		}
	}
	return measureEmpty(duration, load)
}

func programName(id uint32) string {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return fmt.Sprint("program ", id)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return fmt.Sprint("program ", id)
	}
	return info.Name
}

// measureEmpty returns the nanoseconds of a run of a program that does nothing.
func measureEmpty(duration time.Duration, load string) (float64, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "empty", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "inet_sock_set_state",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, License: "GPL",
	})
	if err != nil {
		return 0, fmt.Errorf("load an empty program: %w", err)
	}
	defer p.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: p})
	if err != nil {
		return 0, fmt.Errorf("attach an empty program: %w", err)
	}
	defer l.Close()
	if _, err := churn(duration, load); err != nil {
		return 0, err
	}
	s, err := p.Stats()
	if err != nil || s.RunCount == 0 {
		return 0, fmt.Errorf("an empty program ran %d times: %w", s.RunCount, err)
	}
	return float64(s.Runtime) / float64(s.RunCount), nil
}
