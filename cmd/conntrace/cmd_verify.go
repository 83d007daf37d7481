package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/conntrace/conntrace/cmd/conntrace/internal/render"
	"github.com/conntrace/conntrace/cmd/conntrace/internal/stdio"
	"github.com/conntrace/conntrace/internal/verify"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
	"github.com/conntrace/conntrace/pkg/tracker"
	"github.com/spf13/cobra"
)

type verifyOptions struct {
	procfsFlags
	limitFlags
	hooks    []string
	kind     conn.Kind
	against  tracker.Source
	owners   bool
	duration time.Duration // 0: as count says
	interval time.Duration
	count    uint64 // 0: as duration says
	format   string
	quiet    bool
}

const verifyDuration = 10 * time.Second

func newVerifyCommand() *cobra.Command {
	o := verifyOptions{kind: conn.KindTCP, against: tracker.SourceNetlink, interval: 500 * time.Millisecond}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the tracker's table with the kernel's own, again and again",
		Long: `Runs the tracker and compares its table with the kernel's own, again and again,
while the machine goes on with its work. Prints what differs, and the account:
every event that the hooks saw was delivered or counted as lost.

The table is kept by events alone here: it is not refreshed by looking at the
kernel's tables again, unless events were lost. Existence, addresses and TCP state
of every socket are compared, in every network namespace. The process is compared
with --owners only: no event tells of a descriptor that is duplicated or passed on,
so the tracker looks at all descriptors first then, as it does for its users once a
second. Left out are sockets that come and go without an event: TIME_WAIT, requests
that nobody has accepted yet (SYN_RECV), and attempts to connect (SYN_SENT).

A difference counts as a mismatch if the table has it before and after a look at
the kernel's sockets, and looks go on to find it for 2 s. Others are of sockets that
changed meanwhile, and are counted as transient; so is what differs within 5 s of a
loss, while the table is repaired.

Exit status: 0 no mismatch, also by Ctrl-C; 1 mismatches, an account that does not
add up, or so many losses that it cannot be told; 2 wrong use; 4 permission denied.`,
		Example: `  conntrace verify
  conntrace verify --duration 1h --interval 5s
  conntrace verify --owners --against ebpf
  conntrace verify --hooks tracepoint,syscall
  conntrace verify --ring-buffer 64KiB    # does it recover from losses?
  conntrace verify -o json | jq -c 'select(.event == "mismatch")'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Var(&value[time.Duration]{dst: &o.duration, name: "TIME", parse: parseDuration}, "duration", fmt.Sprintf("end after this time (default %v, unless --count is given)", verifyDuration))
	flags.Var(&value[uint64]{dst: &o.count, name: "N", parse: parseCount}, "count", "end after this many looks, and those that settle what the last one found")
	flags.Var(&value[time.Duration]{dst: &o.interval, text: "500ms", name: "TIME", parse: parseDuration}, "interval", "time between two looks")
	flags.Var(&value[conn.Kind]{dst: &o.kind, text: o.kind.String(), name: "KIND", parse: parseTCPKind}, "kind", "sockets of this kind: tcp, tcp4, tcp6")
	flags.BoolVar(&o.owners, "owners", false, "compare processes and descriptors as well")
	flags.Var(&value[tracker.Source]{dst: &o.against, text: string(o.against), name: "SOURCE", parse: parseAgainst}, "against", "how to read the kernel's table: netlink (sock_diag) or ebpf (iterators)")
	addFormat(cmd, &o.format, "text", "json")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "no notes and no progress on stderr, only errors")
	addHooks(cmd, &o.hooks)
	o.procfsFlags.add(cmd)
	o.limitFlags.add(cmd)
	complete(cmd, "kind", tcpKinds)
	complete(cmd, "against", against)
	for _, flag := range []string{"duration", "count", "interval"} {
		complete(cmd, flag, nil)
	}
	return cmd
}

var (
	tcpKinds = []string{"tcp", "tcp4", "tcp6"}
	against  = []string{string(tracker.SourceNetlink), string(tracker.SourceEBPF)}
)

func parseTCPKind(s string) (conn.Kind, error) {
	name, err := oneOf("kind", tcpKinds)(s)
	if err != nil {
		return 0, err
	}
	return conn.ParseKind(name)
}

func parseAgainst(s string) (tracker.Source, error) {
	name, err := oneOf("source", against)(s)
	return tracker.Source(name), err
}

func (o *verifyOptions) run(cmd *cobra.Command) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.duration == 0 && o.count == 0 {
		o.duration = verifyDuration
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the next signal kills

	cfg := tracker.Config{
		Source: tracker.SourceEBPF, ProcFS: o.procfs, AllNamespaces: true,
		States: true, Freshness: tracker.NeverRefresh, Hooks: o.hooks,
	}
	if o.owners {
		cfg.Freshness = tracker.AlwaysExact
	}
	o.configure(&cfg)
	if !o.quiet {
		cfg.Logger = newLogger(cmd.ErrOrStderr())
	}
	t, err := tracker.Open(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer t.Close()

	v := &verification{
		verifyOptions: o, tracker: t, checker: verify.Checker{Owners: o.owners, Settle: settle}, out: cmd.OutOrStdout(),
		progress: progress{w: cmd.ErrOrStderr(), off: o.quiet || !stdio.IsTerminal(cmd.ErrOrStderr())}, start: time.Now(),
	}
	if !o.quiet {
		v.limits = newLimitNote(cmd.ErrOrStderr())
	}
	err = v.loop(ctx)
	v.progress.clear()
	closeErr := t.Close() // after which the account is complete
	return errors.Join(err, closeErr, v.conclude(t.Stats()))
}

// A verification is a run of the command.
type verification struct {
	*verifyOptions
	tracker  *tracker.Tracker
	checker  verify.Checker
	out      io.Writer
	progress progress
	limits   *limitNote // nil: be quiet

	start  time.Time
	look   verify.Look
	lost   uint64    // events, by the last look
	repair time.Time // until when the table is being repaired
	line   []byte
}

// settle is how long a difference must last to be a mismatch. An event is a moment
// late if the task that it comes from has to wait for a CPU.
const settle = 2 * time.Second

// repairTime is what a tracker gets to notice a loss and to repair its table.
const repairTime = 5 * time.Second

// loop looks until ctx or the run ends, and then until nothing is undecided.
func (v *verification) loop(ctx context.Context) error {
	ticker := time.NewTicker(v.interval)
	defer ticker.Stop()
	for !v.done(ctx) {
		if err := v.compare(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	// What differs by then is looked at until it has settled. What is new after that
	// cannot be told from what changes.
	interval := min(v.interval, time.Second)
	end := time.Now().Add(settle + interval)
	patience := time.Now().Add(3 * repairTime)
	for v.checker.Pending() > 0 && time.Now().Before(end) || !v.repair.IsZero() {
		time.Sleep(interval)
		if !v.repair.IsZero() {
			end = time.Now().Add(settle + interval)
			if time.Now().After(patience) {
				return errors.New("events are lost all the time: the table has no time to become true; a larger --ring-buffer may help")
			}
		}
		if err := v.compare(); err != nil {
			return err
		}
	}
	return nil
}

func (v *verification) done(ctx context.Context) bool {
	return ctx.Err() != nil || v.count > 0 && uint64(v.checker.Looks) >= v.count ||
		v.duration > 0 && time.Since(v.start) >= v.duration
}

// compare takes one look and prints the mismatches that it confirms.
func (v *verification) compare() (err error) {
	v.look.Time = time.Now()
	if v.look.Before, err = v.tracker.AppendConnections(v.look.Before[:0], v.kind); err != nil {
		return err
	}
	snap, err := tracker.TakeSnapshot(context.Background(), tracker.SnapshotConfig{
		Source: v.against, ProcFS: v.procfs, Query: fallback.Query{Kind: v.kind, AllNamespaces: true},
	})
	if err != nil {
		return err
	}
	v.look.Kernel, v.look.Namespaces = snap.Conns, snap.Namespaces
	if v.look.After, err = v.tracker.AppendConnections(v.look.After[:0], v.kind); err != nil {
		return err
	}

	for _, d := range v.checker.Check(&v.look) {
		if err := v.print(&d); err != nil {
			return err
		}
	}
	stats := v.tracker.Stats()
	if lost := stats.Lost.Events(); lost != v.lost {
		v.lost, v.repair = lost, time.Now().Add(repairTime)
	}
	if time.Now().Before(v.repair) {
		v.checker.Excuse()
	} else {
		v.repair = time.Time{}
	}
	if v.limits != nil {
		v.progress.clear()
		v.limits.check(stats.Lost)
	}
	v.progress.show("%s at %s: %d transient, %s; %d events, %s", count(v.checker.Looks, "look", "looks"),
		count(len(v.look.Kernel), "socket", "sockets"), v.checker.Transient, count(v.checker.Lasting, "mismatch", "mismatches"),
		stats.Seen, losses(stats.Lost))
	return nil
}

// print prints a mismatch.
func (v *verification) print(d *verify.Difference) error {
	v.progress.clear()
	if v.format == "text" {
		_, err := fmt.Fprintf(v.out, "%s %s\n", time.Now().Format("15:04:05.000"), d)
		return err
	}
	v.line = append(v.line[:0], `{"time":"`...)
	v.line = time.Now().UTC().AppendFormat(v.line, "2006-01-02T15:04:05.000000000Z")
	v.line = append(v.line, `","event":"mismatch","difference":"`...)
	v.line = append(v.line, d.Kind...)
	v.line = append(v.line, `","table":`...)
	v.line = appendRow(v.line, &d.Table, d.Kind != verify.Missing)
	v.line = append(v.line, `,"kernel":`...)
	v.line = appendRow(v.line, &d.Kernel, d.Kind != verify.Extra)
	_, err := v.out.Write(append(v.line, "}\n"...))
	return err
}

func appendRow(dst []byte, c *conn.Conn, there bool) []byte {
	if !there {
		return append(dst, "null"...)
	}
	return render.AppendConnJSON(dst, c)
}

// conclude prints the result; its error says what is wrong. stats is the tracker's
// account after its end.
func (v *verification) conclude(stats tracker.Stats) error {
	if err := v.summarize(&stats); err != nil {
		return err
	}
	var errs []error
	if n := v.checker.Lasting; n > 0 {
		errs = append(errs, fmt.Errorf("%s between the tracker's table and the kernel's", count(n, "mismatch", "mismatches")))
	}
	if told := stats.Delivered + stats.Lost.Events(); stats.Seen != told {
		errs = append(errs, fmt.Errorf("the account does not add up: %d events were seen, %d delivered or lost", stats.Seen, told))
	}
	if stats.Reconciled > 0 && stats.Lost.Events() == 0 {
		errs = append(errs, fmt.Errorf("%s had to be repaired although nothing was lost", count(stats.Reconciled, "socket", "sockets")))
	}
	return errors.Join(errs...)
}

func (v *verification) summarize(stats *tracker.Stats) error {
	took := time.Since(v.start)
	if v.format == "text" {
		_, err := fmt.Fprintf(v.out, "%s at %s in %v: %s, %s; %s, %d delivered, %s, %s repaired\n",
			count(v.checker.Looks, "look", "looks"), count(v.checker.Rows, "row", "rows"), took.Round(time.Millisecond),
			count(v.checker.Lasting, "mismatch", "mismatches"), count(v.checker.Transient, "transient difference", "transient differences"), count(stats.Seen, "event", "events"),
			stats.Delivered, losses(stats.Lost), count(stats.Reconciled, "socket", "sockets"))
		return err
	}
	line := v.line[:0]
	for _, member := range []struct {
		key string
		n   uint64
	}{
		{`{"event":"summary","duration_ns":`, uint64(took)},
		{`,"looks":`, uint64(v.checker.Looks)},
		{`,"rows":`, v.checker.Rows},
		{`,"mismatches":`, v.checker.Lasting},
		{`,"transient":`, v.checker.Transient},
		{`,"seen":`, stats.Seen},
		{`,"delivered":`, stats.Delivered},
		{`,"lost":`, stats.Lost.Events()},
		{`,"lost_ring_full":`, stats.Lost.RingFull},
		{`,"lost_recursion":`, stats.Lost.Recursion},
		{`,"map_full":`, stats.Lost.MapFull},
		{`,"reconciled":`, stats.Reconciled},
	} {
		line = strconv.AppendUint(append(line, member.key...), member.n, 10)
	}
	_, err := v.out.Write(append(line, "}\n"...))
	return err
}

// A progress is a line on a terminal that is written anew.
type progress struct {
	w     io.Writer
	off   bool
	shown bool
}

func (p *progress) show(format string, args ...any) {
	if p.off {
		return
	}
	text := fmt.Sprintf(format, args...)
	if width := stdio.Width(p.w); width > 0 && len(text) >= width {
		text = text[:width-1] // it can only be erased if it is one line
	}
	io.WriteString(p.w, "\r\x1b[K"+text)
	p.shown = true
}

func (p *progress) clear() {
	if p.shown {
		io.WriteString(p.w, "\r\x1b[K")
		p.shown = false
	}
}
