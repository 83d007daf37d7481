package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/conntrace/conntrace/scripts/bench/turns"
)

// counts are numbers of events by type.
type counts map[string]uint64

// An observer watches connections.
type observer struct {
	name    string
	command []string
	read    func(io.Reader) (counts, error) // counts the load generator's events in what it printed
	expect  func(turns.Load) counts         // how many there should be, of the types that are compared; nil: it sees nothing
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
		{name: "empty programs at our hooks", command: []string{program("ours"), "empty"}, read: readNothing},
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

// seeing returns those of the observers that see anything.
func seeing(all []*observer) []*observer {
	return slices.DeleteFunc(slices.Clone(all), func(o *observer) bool { return o.expect == nil })
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

// readNothing reads what an observer prints that sees nothing.
func readNothing(io.Reader) (counts, error) { return nil, nil }

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
