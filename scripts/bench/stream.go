package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// counts are numbers of events by type.
type counts map[string]uint64

// An observer watches connections.
type observer struct {
	name    string
	command []string
	read    func(io.Reader) (counts, error) // counts the load generator's events in what it printed
	expect  func(turns.Load) counts         // how many there should be, of the types that are compared
	absent  string                          // why it takes no part

	// At rest.
	rss, hwm  int // bytes
	wakeups   float64
	perSocket int // bytes

	// Of each run with load.
	ratios []float64 // of the rate to that without
	rates  []float64 // connections a second
	costs  []float64 // µs of CPU a connection

	// Summed over all runs with load.
	connections                   uint64
	expected, seen, missing, more uint64
	rows                          uint64 // events of all types
	user, system                  time.Duration
	hwmAfter                      int
	account                       string // of the last run, in its own words

	// Of the run with statistics.
	programs       []kernelRun
	programsServed uint64 // connections
}

// A kernelRun is the account of a BPF program during a load.
type kernelRun struct {
	name  string
	count uint64
	ns    uint64
}

func observers() []*observer {
	all := []*observer{
		{name: "conntrace library", command: []string{program("ours"), "stream"}, read: readStream, expect: everyEvent},
		{name: "`conntrace -o json` to a file", command: []string{program("conntrace"), "-o", "json"}, read: readJSON, expect: everyEvent},
		{name: "tcplife", command: []string{"tcplife"}, read: readRows("", "row"), expect: everyEnd},
		{name: "tcpstates", command: []string{"tcpstates"}, read: readRows("-> CLOSE ", "row"), expect: everyEndAndListener},
	}
	all = slices.DeleteFunc(all, func(o *observer) bool { return !wanted(o.name) })
	for _, o := range all {
		path, err := exec.LookPath(o.command[0])
		if err != nil {
			o.absent = "not installed (Debian: libbpf-tools)"
			continue
		}
		o.command[0] = path
	}
	return all
}

// tiers are observers that force a choice of hooks, each once.
func tiers() []*observer {
	var all []*observer
	for _, hooks := range []string{
		"tp_btf,fexit", "tp_btf,kretprobe", "tp_btf,syscall", "raw_tp,syscall", "tracepoint,syscall",
	} {
		all = append(all, &observer{
			name: "`--hooks " + hooks + "`", command: []string{program("ours"), "stream", hooks},
			read: readStream, expect: everyEvent,
		})
	}
	return slices.DeleteFunc(all, func(o *observer) bool { return !wanted(o.name) })
}

// everyEvent expects an event at both ends for the begin and the end of each
// connection, and of the servers' listeners.
func everyEvent(l turns.Load) counts {
	return counts{
		"connect": l.Connects, "accept": l.Accepts, "close": l.Connects + l.Accepts + uint64(pairs()),
		"listen": uint64(pairs()),
	}
}

// everyEnd expects a row at both ends of each connection.
func everyEnd(l turns.Load) counts { return counts{"row": l.Connects + l.Accepts} }

func everyEndAndListener(l turns.Load) counts {
	return counts{"row": l.Connects + l.Accepts + uint64(pairs())}
}

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

	fmt.Fprintln(os.Stderr, "bench: idle")
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
	empty, err := measureKernel(present, duration, load)
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
	printLoss(present)
	for _, print := range more {
		print(present)
	}
	printKernel(present, empty)
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

// A watch is a run of an observer.
type watch struct {
	*observer
	*child
	out *os.File
}

func (o *observer) start() (*watch, error) {
	out, err := os.Create(program("out/events"))
	if err != nil {
		return nil, err
	}
	// The name is free for another observer at once, and the memory once it is closed.
	if err := os.Remove(out.Name()); err != nil {
		return nil, err
	}
	cmd := exec.Command(o.command[0], o.command[1:]...)
	cmd.Stdout = out
	c, err := start(cmd)
	if err != nil {
		out.Close()
		return nil, err
	}
	return &watch{o, c, out}, nil
}

// awaitPrograms waits until the observer is ready: it has loaded no more BPF programs
// for a while. It returns early if the observer ends.
func (w *watch) awaitPrograms() {
	n, since := 0, time.Now()
	for end := since.Add(patience); w.running() && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if now := len(programRuns(w.pid())); now != n {
			n, since = now, time.Now()
		}
		if n > 0 && time.Since(since) >= startUp {
			return
		}
	}
}

// stop ends the observer and counts what it has printed.
func (w *watch) stop() (counts, error) {
	defer w.out.Close()
	if !w.running() {
		return nil, fmt.Errorf("%s: %s", w.name, w.complaint())
	}
	if err := w.interrupt(); err != nil {
		return nil, err
	}
	if _, err := w.out.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	seen, err := w.read(w.out)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; %s", w.name, err, w.complaint())
	}
	return seen, nil
}

// measureIdle runs all observers while nothing happens, and finds out which ones
// can be run here.
func measureIdle(all []*observer) error {
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
	expected := o.expect(l)
	for typ, n := range expected {
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

// ownWords is what an observer says that it lost.
func (w *watch) ownWords(seen counts) string {
	if _, ok := seen["stats.Seen"]; ok {
		return fmt.Sprintf("seen %d, delivered %d, lost: ring full %d, recursion %d, map full %d, slow subscriber %d",
			seen["stats.Seen"], seen["stats.Delivered"], seen["stats.RingFull"], seen["stats.Recursion"],
			seen["stats.MapFull"], seen["stats.SlowSubscriber"])
	}
	lines := strings.Split(strings.TrimSpace(w.stderr.String()), "\n")
	switch last := lines[len(lines)-1]; {
	case last == "":
		return "nothing"
	case len(lines) > 1:
		return fmt.Sprintf("%q, the last of %d lines", last, len(lines))
	default:
		return fmt.Sprintf("%q", last)
	}
}

// readStream reads the counts that `ours stream` printed.
func readStream(r io.Reader) (counts, error) {
	var s turns.Stream
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		return nil, err
	}
	c := counts{
		"stats.Seen": s.Stats.Seen, "stats.Delivered": s.Stats.Delivered, "stats.RingFull": s.Stats.RingFull,
		"stats.Recursion": s.Stats.Recursion, "stats.MapFull": s.Stats.MapFull, "stats.SlowSubscriber": s.Stats.SlowSubscriber,
	}
	for typ, n := range s.ByType {
		c[typ] = n
		c["all"] += n
	}
	return c, nil
}

// readJSON counts the events in the lines of `conntrace -o json`.
func readJSON(r io.Reader) (counts, error) {
	c := make(counts)
	key, net := []byte(`"event":"`), []byte(turns.LoadNet)
	lines := bufio.NewScanner(bufio.NewReaderSize(r, 1<<20))
	for lines.Scan() {
		_, typ, ok := bytes.Cut(lines.Bytes(), key)
		if !ok {
			return nil, fmt.Errorf("no event in line %q", lines.Text())
		}
		end := bytes.IndexByte(typ, '"')
		if bytes.Contains(lines.Bytes(), net) {
			c[string(typ[:end])]++
			c["all"]++
		}
	}
	return c, lines.Err()
}

// readRows counts the lines of the load generator; those with the text count as typ.
func readRows(text, typ string) func(r io.Reader) (counts, error) {
	return func(r io.Reader) (counts, error) {
		c := make(counts)
		lines := bufio.NewScanner(bufio.NewReaderSize(r, 1<<20))
		for lines.Scan() {
			if !bytes.Contains(lines.Bytes(), []byte(turns.LoadNet)) {
				continue
			}
			c["all"]++
			if bytes.Contains(lines.Bytes(), []byte(text)) {
				c[typ]++
			}
		}
		return c, lines.Err()
	}
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

// observerVersions returns the versions of those that are not ours.
func observerVersions(all []*observer) (versions []string) {
	for _, o := range all {
		if o.name == "tcplife" || o.name == "tcpstates" {
			versions = append(versions, firstLineWith(o.name, o.name, "--version"))
		}
	}
	if _, err := exec.LookPath("dpkg-query"); err == nil && len(versions) > 0 {
		versions = append(versions, "libbpf-tools "+firstLineWith("", "dpkg-query", "-W", "-f", "${Version}\n", "libbpf-tools"))
	}
	return versions
}

func printThroughput(all []*observer, none []float64) {
	g := grid{{"throughput", "with / without (median)", "range", "connections/s", "CPU a connection"}}
	for _, o := range all {
		g.add(o.name, fmt.Sprintf("%.3f", median(o.ratios)), fmt.Sprintf("%.3f to %.3f", slices.Min(o.ratios), slices.Max(o.ratios)),
			fmt.Sprintf("%.0f", median(o.rates)), fmt.Sprintf("%+.2f µs", median(o.costs)))
	}
	// What the method gives where there is nothing to measure.
	var noise []float64
	for i := 1; i+1 < len(none); i++ {
		noise = append(noise, 2*none[i]/(none[i-1]+none[i+1]))
	}
	g.add("no observer (noise)", fmt.Sprintf("%.3f", median(noise)), fmt.Sprintf("%.3f to %.3f", slices.Min(noise), slices.Max(noise)),
		fmt.Sprintf("%.0f", median(none)), fmt.Sprintf("%.2f µs in all", cores*1e6/median(none)))
	g.print()
}

func printLoss(all []*observer) {
	g := grid{{"events", "expected", "seen", "lost", "too many"}}
	for _, o := range all {
		g.add(o.name, fmt.Sprint(o.expected), fmt.Sprint(o.seen), fmt.Sprintf("%d (%.3g %%)", o.missing, 100*float64(o.missing)/float64(o.expected)), fmt.Sprint(o.more))
	}
	g.print()
	fmt.Println()
	if len(observerVersions(all)) > 0 {
		fmt.Println("Of tcplife and tcpstates the rows that tell the end of a connection are counted.")
	}
	fmt.Println("What each said itself of the last run:")
	for _, o := range all {
		fmt.Printf("- %s: %s\n", o.name, o.account)
	}
}

func printCost(all []*observer) {
	g := grid{{"the observer's own CPU time", "user, an event", "system, an event", "both, a connection", "events or rows"}}
	for _, o := range all {
		if o.rows == 0 || o.connections == 0 {
			g.add(o.name, "-", "-", "-", fmt.Sprint(o.rows))
			continue
		}
		g.add(o.name, perEvent(o.user, o.rows), perEvent(o.system, o.rows), perEvent(o.user+o.system, o.connections), fmt.Sprint(o.rows))
	}
	g.print()
}

func perEvent(t time.Duration, n uint64) string {
	return fmt.Sprintf("%.0f ns", float64(t.Nanoseconds())/float64(n))
}

func printIdle(all []*observer) {
	mb := func(bytes int) string { return digits(float64(bytes)/(1<<20)) + " MiB" }
	g := grid{{"at rest", "VmRSS", "VmHWM", "VmHWM after load", "a live socket", "wakeups/s"}}
	for _, o := range all {
		g.add(o.name, mb(o.rss), mb(o.hwm), mb(o.hwmAfter), fmt.Sprintf("%d B", o.perSocket), fmt.Sprintf("%.1f", o.wakeups))
	}
	g.print()
	fmt.Printf("\nA live socket: growth of VmRSS by %d sockets; what the kernel keeps is not in it.\nWakeups: over %v; the connections of others on the machine wake it too.\n", liveSockets, idleFor)
}

func printKernel(all []*observer, empty float64) {
	g := grid{{"BPF programs, timed by the kernel", "runs a connection", "ns a run", "ns a run, less an empty program's", "ns a connection"}}
	for _, o := range all {
		var sum kernelRun
		slices.SortFunc(o.programs, func(a, b kernelRun) int { return strings.Compare(a.name, b.name) })
		row := func(name string, r kernelRun) {
			if r.count == 0 {
				g.add(name, "0", "-", "-", "-")
				return
			}
			ns := float64(r.ns) / float64(r.count)
			g.add(name, fmt.Sprintf("%.2f", float64(r.count)/float64(o.programsServed)), fmt.Sprintf("%.0f", ns),
				fmt.Sprintf("%.0f", ns-empty), fmt.Sprintf("%.0f", float64(r.ns)/float64(o.programsServed)))
		}
		for _, r := range o.programs {
			row(o.name+": "+r.name, r)
			sum.count += r.count
			sum.ns += r.ns
		}
		row(o.name+": all", sum)
	}
	g.add("an empty program", "", fmt.Sprintf("%.0f", empty), "", "")
	g.print()
}
