package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/conntrace/conntrace/scripts/bench/turns"
)

// A contestant answers which TCP sockets there are.
type contestant struct {
	name    string
	ours    bool
	command []string // run anew each time; the lines it prints are counted
	prefix  string   // of the lines that are rows; "": all but a header
	serve   []string // started once, then makes the call in turns

	server *server
	note   string // what a server says of itself
	absent string // why it takes no part

	// Of the size that is being measured.
	wrong  int       // rounds with another number of rows
	rows   int       // of the last round
	allocs uint64    // of the last round
	ns     []float64 // of each round
	rounds int
	first  float64 // ns of the round that is not timed
}

// Names that the ratios refer to.
const (
	library = "conntrace: NetConnections(tcp)"
	list    = "`conntrace list -t`"
)

func contestants() []*contestant {
	ours, conntrace := program("ours"), program("conntrace")
	all := []*contestant{{name: library, ours: true, serve: []string{ours, "snapshot"}}}
	for _, source := range []string{"ebpf", "netlink", "procfs"} {
		all = append(all, &contestant{name: "conntrace: TakeSnapshot by " + source, ours: true, serve: []string{ours, "snapshot", source}})
	}
	all = append(all,
		&contestant{name: "conntrace: Tracker.AppendConnections", ours: true, serve: []string{ours, "live"}},
		&contestant{name: "psutil: net_connections('tcp')", serve: []string{python(), program("time_psutil.py")}},
		&contestant{name: "gopsutil: Connections(\"tcp\")", serve: []string{program("gopsutil")}},
		&contestant{name: list, ours: true, command: []string{conntrace, "list", "-t"}},
		&contestant{name: "`conntrace list -t -o json`", ours: true, command: []string{conntrace, "list", "-t", "-o", "json"}, prefix: "{"},
		&contestant{name: "`ss -tanp`", command: []string{"ss", "-tanp"}},
		&contestant{name: "`lsof -nP -iTCP`", command: []string{"lsof", "-nP", "-iTCP"}},
	)
	// The two that others are compared with stay.
	all = slices.DeleteFunc(all, func(c *contestant) bool { return !wanted(c.name) && c.name != library && c.name != list })
	for _, c := range all {
		if c.command != nil {
			if _, err := exec.LookPath(c.command[0]); err != nil {
				c.absent = "not installed"
			}
		}
	}
	return all
}

// python returns a Python that has psutil, if there is one.
func python() string {
	for _, p := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(p, "-c", "import psutil").Run() == nil {
			return p
		}
	}
	return "/usr/bin/python3"
}

// benchSnapshot times one-shot answers at several numbers of sockets.
func benchSnapshot(sizes []int) error {
	where, err := describe()
	if err != nil {
		return err
	}
	all := contestants()
	results := make(map[*contestant][]contestant) // by size
	for _, n := range sizes {
		if err := measureSize(all, n); err != nil {
			return err
		}
		for _, c := range all {
			results[c] = append(results[c], *c)
		}
	}

	fmt.Printf("## A snapshot of N TCP sockets\n\n%s", where)
	if peers := peerVersions(all); len(peers) > 0 {
		fmt.Printf("- peers: %s\n", strings.Join(peers, ", "))
	}
	printRows(all, results, sizes)
	printTimes(all, results, sizes)
	printRatios(all, results, sizes)
	printFirst(all, results, sizes)
	printAllocs(all, results, sizes)
	fmt.Println()
	for _, c := range all {
		if c.absent != "" {
			fmt.Printf("- %s takes no part: %s\n", c.name, c.absent)
		}
	}
	for _, c := range all {
		if c.ours && slices.ContainsFunc(results[c], func(r contestant) bool { return r.wrong > 0 }) {
			return fmt.Errorf("%s gave a wrong number of rows", c.name)
		}
	}
	return nil
}

// measureSize opens n sockets and times everybody, in turns.
func measureSize(all []*contestant, n int) error {
	fmt.Fprintf(os.Stderr, "bench: %d sockets: ", n)
	defer fmt.Fprintln(os.Stderr)
	holders, err := holdSockets(n)
	defer release(holders)
	if err != nil {
		return err
	}

	rounds := 5
	if n <= 20_000 {
		rounds = 7
	}
	if n <= 1_000 {
		rounds = 9
	}
	// The first round is not timed: it warms up, and shows who counts what.
	for round := range rounds + 1 {
		fmt.Fprint(os.Stderr, ".")
		for _, c := range all {
			switch {
			case round == 0:
				c.ns = nil
				c.wrong, c.rounds, c.first = 0, rounds, 0
				began := time.Now()
				if c.absent == "" {
					if err := c.measure(n); err != nil {
						c.absent = err.Error()
					}
				}
				if time.Since(began) > 4*time.Second {
					c.rounds = min(3, rounds)
				}
				if len(c.ns) > 0 {
					c.first = c.ns[len(c.ns)-1]
				}
				c.ns = nil
			case c.absent == "" && round <= c.rounds:
				if err := c.measure(n); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
		}
	}
	for _, c := range all {
		if c.server != nil {
			c.server.stop()
			c.server = nil
		}
	}
	return nil
}

// measure has the question answered once.
func (c *contestant) measure(n int) error {
	var call turns.Call
	var err error
	if c.serve != nil {
		call, err = c.serveCall()
	} else {
		call, err = c.runCommand()
	}
	if err != nil {
		return err
	}
	c.ns = append(c.ns, float64(call.NS))
	c.rows, c.allocs = call.Rows, call.Allocs
	if call.Note != "" {
		c.note = call.Note
	}
	if c.rows != n {
		c.wrong++
	}
	return nil
}

func (c *contestant) serveCall() (call turns.Call, err error) {
	if c.server == nil {
		c.server, err = startServer(exec.Command(c.serve[0], c.serve[1:]...))
		if err != nil {
			return call, err
		}
	}
	return c.server.call()
}

// runCommand times a command from its start to its end. Its output goes to a file,
// lest its reader be measured too.
func (c *contestant) runCommand() (call turns.Call, err error) {
	path := program("out/rows")
	out, err := os.Create(path)
	if err != nil {
		return call, err
	}
	defer out.Close()
	cmd := exec.Command(c.command[0], c.command[1:]...)
	cmd.Stdout = out
	began := time.Now()
	child, err := start(cmd)
	if err != nil {
		return call, err
	}
	<-child.ended
	call.NS = time.Since(began).Nanoseconds()
	if child.err != nil {
		return call, fmt.Errorf("%s", child.complaint())
	}

	text, err := os.ReadFile(path)
	if err != nil {
		return call, err
	}
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, []byte(c.prefix)) {
			call.Rows++
		}
	}
	if c.prefix == "" {
		call.Rows-- // the header
	}
	return call, nil
}

func peerVersions(all []*contestant) []string {
	var versions []string
	for _, c := range all {
		name, _, _ := strings.Cut(c.name, ":")
		switch {
		case c.ours || c.absent != "":
		case c.serve != nil:
			versions = append(versions, name+" "+c.note)
		case c.command[0] == "ss":
			versions = append(versions, firstLineWith("ss", "ss", "-V"))
		case c.command[0] == "lsof":
			versions = append(versions, "lsof "+firstLineWith("revision", "lsof", "-v"))
		}
	}
	return versions
}

func header(first string, sizes []int) []string {
	row := []string{first}
	for _, n := range sizes {
		row = append(row, fmt.Sprintf("N = %d", n))
	}
	return row
}

// printRows shows whether all speak of the same sockets.
func printRows(all []*contestant, results map[*contestant][]contestant, sizes []int) {
	g := grid{header("rows", sizes)}
	for _, c := range all {
		row := []string{c.name}
		for _, r := range results[c] {
			switch {
			case r.ns == nil:
				row = append(row, "-")
			case r.wrong > 0:
				row = append(row, fmt.Sprintf("%d WRONG", r.rows))
			default:
				row = append(row, fmt.Sprint(r.rows))
			}
		}
		g.add(row...)
	}
	g.print()
}

func printTimes(all []*contestant, results map[*contestant][]contestant, sizes []int) {
	g := grid{header("median, ms", sizes)}
	for _, c := range all {
		name := c.name
		if name == library && c.note != "" {
			name += ", " + c.note
		}
		row := []string{name}
		for _, r := range results[c] {
			switch {
			case r.ns == nil:
				row = append(row, "-")
			case r.rounds == 3:
				row = append(row, ms(median(r.ns))+" (3 rounds)")
			default:
				row = append(row, ms(median(r.ns)))
			}
		}
		g.add(row...)
	}
	g.print()
	fmt.Println("\nFunctions are timed in a process that runs already, commands from start to end.")
}

// printRatios shows how many times as long peers take: the median of the ratios of
// each round.
func printRatios(all []*contestant, results map[*contestant][]contestant, sizes []int) {
	g := grid{header("times as long as ours", sizes)}
	for _, ours := range []string{library, list} {
		us := all[slices.IndexFunc(all, func(c *contestant) bool { return c.name == ours })]
		for _, peer := range all {
			if peer.ours || us.command != nil && peer.command == nil {
				continue
			}
			row := []string{peer.name + " / " + strings.TrimPrefix(ours, "conntrace: ")}
			for i := range sizes {
				row = append(row, ratio(results[peer][i], results[us][i]))
			}
			g.add(row...)
		}
	}
	if len(g) > 1 {
		g.print()
	}
}

func ratio(peer, us contestant) string {
	var ratios []float64
	for round := range min(len(peer.ns), len(us.ns)) {
		ratios = append(ratios, peer.ns[round]/us.ns[round])
	}
	if len(ratios) == 0 || peer.wrong > 0 || us.wrong > 0 {
		return "-"
	}
	return digits(median(ratios)) + " ×"
}

// printFirst shows what whoever asks only once has to wait.
func printFirst(all []*contestant, results map[*contestant][]contestant, sizes []int) {
	g := grid{header("first call of a process, ms (once)", sizes)}
	for _, c := range all {
		if c.serve == nil {
			continue
		}
		row := []string{c.name}
		for _, r := range results[c] {
			if r.ns == nil {
				row = append(row, "-")
				continue
			}
			row = append(row, ms(r.first))
		}
		g.add(row...)
	}
	g.print()
}

func printAllocs(all []*contestant, results map[*contestant][]contestant, sizes []int) {
	g := grid{header("allocations a call (last round)", sizes)}
	for _, c := range all {
		if c.serve == nil || !strings.Contains(c.serve[0], "ours") && !strings.Contains(c.serve[0], "gopsutil") {
			continue
		}
		row := []string{c.name}
		for _, r := range results[c] {
			if r.ns == nil {
				row = append(row, "-")
				continue
			}
			row = append(row, fmt.Sprint(r.allocs))
		}
		g.add(row...)
	}
	g.print()
}
