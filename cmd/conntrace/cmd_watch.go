package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/conntrace/conntrace/cmd/conntrace/internal/render"
	"github.com/conntrace/conntrace/cmd/conntrace/internal/stdio"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
	"github.com/spf13/cobra"
)

type watchOptions struct {
	sourceFlags
	kindFlags
	matchFlags
	limitFlags
	pids         []int32
	direction    conn.Direction
	events       []conn.EventType
	states       bool
	noSeed       bool
	duration     time.Duration
	count        uint64
	pollInterval time.Duration
	buffer       int
	hooks        []string
	format       string
	noHeader     bool
	quiet        bool
}

const watchExitStatus = `
Exit status: 0 done, also by Ctrl-C or a closed pipe; 1 failed; 2 wrong use;
4 permission denied.`

func newWatchCommand() *cobra.Command {
	o := watchOptions{pollInterval: time.Second, buffer: watchBuffer}
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show TCP connections as they open, fail and close (the default)",
		Long: `Shows the TCP connections and listeners that exist (seed), then each one that is
opened here (connect) or accepted (accept), that fails (fail), listens (listen)
or ends (close), with its process. A line tells how many events were lost, should
that ever happen (gap). With --states there is a line for each change of a TCP state,
too (state).

Filters combine; of the values of one, any will do. What counts is the process
that owns the connection, which is who connected or accepted. Ctrl-C ends it with
a summary on stderr.

Once everything is attached, the capabilities that only that needed are given up
(doctor says whether this build can).
` + watchExitStatus,
		Example: `  conntrace watch
  conntrace watch --no-seed --event connect,fail --direction outbound
  conntrace watch --addr 10.0.0.0/8,fd00::/8 --port 5432
  conntrace watch --pid 1234 --count 10
  conntrace watch --states --port 443
  conntrace watch -o json | jq -c 'select(.reason == "reset")'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.VarP(&values[int32]{dst: &o.pids, name: "PID", parse: parsePID}, "pid", "p", "only of this process")
	o.matchFlags.add(cmd)
	flags.Var(&value[conn.Direction]{dst: &o.direction, name: "DIRECTION", parse: conn.ParseDirection}, "direction", "only inbound or outbound connections")
	flags.Var(&values[conn.EventType]{dst: &o.events, name: "EVENT", parse: conn.ParseEventType}, "event", "only these events: "+strings.Join(conn.EventNames(), ", "))
	flags.BoolVar(&o.states, "states", false, "show each change of a TCP state as well (state)")
	flags.BoolVar(&o.noSeed, "no-seed", false, "leave out what exists already")
	flags.Var(&value[time.Duration]{dst: &o.duration, name: "TIME", parse: parseDuration}, "duration", "end after this time")
	flags.Var(&value[uint64]{dst: &o.count, name: "N", parse: parseCount}, "count", "end after this many events were shown, seed and gap included")
	addFormat(cmd, &o.format, "text", "json")
	flags.BoolVarP(&o.noHeader, "no-header", "H", false, "no line of column names")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "no notes on stderr, only errors")
	o.kindFlags.add(cmd)
	flags.Lookup("listening").Usage = "only listeners"
	must(flags.MarkHidden("udp")) // understood, to be told that they have no events
	must(flags.MarkHidden("unix"))
	o.sourceFlags.add(cmd)
	addHooks(cmd, &o.hooks)
	flags.Var(&value[time.Duration]{dst: &o.pollInterval, text: "1s", name: "TIME", parse: parseDuration}, "poll-interval", "shortest time between two looks, where the source has to be polled; up to ten times as long if they take more than 2 % of a core")
	flags.Var(&value[int]{dst: &o.buffer, text: strconv.Itoa(o.buffer), name: "N", parse: parseBuffer}, "buffer", "how many events may wait for a slow output; what does not fit is lost, and told")
	o.limitFlags.add(cmd)
	complete(cmd, "direction", []string{conn.Inbound.String(), conn.Outbound.String()})
	completeList(cmd, "event", conn.EventNames())
	for _, flag := range []string{"pid", "duration", "count", "poll-interval", "buffer"} {
		complete(cmd, flag, nil)
	}
	return cmd
}

func (o *watchOptions) run(cmd *cobra.Command) error {
	filter, err := o.filter()
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	if err := checkHooks(o.hooks, o.source); err != nil {
		return err
	}

	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the next signal kills
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	t, err := tracker.Open(ctx, o.config(cmd.ErrOrStderr()))
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer t.Close()
	s, err := t.Subscribe(filter)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := dropPrivileges(ctx, t.Info().Source); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	if !o.quiet {
		noteSource(cmd.ErrOrStderr(), t.Info())
	}
	if o.duration > 0 {
		var expire context.CancelFunc
		ctx, expire = context.WithTimeout(ctx, o.duration)
		defer expire()
	}
	if !o.quiet {
		noting, stopNoting := context.WithCancel(ctx)
		defer stopNoting()
		go newLimitNote(cmd.ErrOrStderr()).watch(noting, t)
	}
	stdio.OnClosed(cmd.OutOrStdout(), func() { cancel(syscall.EPIPE) })

	out := newStream(cmd.OutOrStdout(), cancel)
	sum := summary{start: time.Now()}
	err = o.copy(ctx, out, o.encoder(cmd.OutOrStdout()), s, &sum)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil && !o.quiet {
		sum.write(cmd.ErrOrStderr(), t.Info(), t.Stats())
	}
	return err
}

// watchBuffer is how many events may wait while the output stalls: about a second's
// worth on a machine that does nothing but open connections.
const watchBuffer = 1 << 18

// filter returns what to subscribe to.
func (o *watchOptions) filter() (tracker.Filter, error) {
	kind, err := o.resolve()
	if err != nil {
		return tracker.Filter{}, err
	}
	kind &= conn.KindTCP
	if kind == 0 {
		return tracker.Filter{}, usageErrorf("only TCP sockets have events; 'conntrace list' shows UDP and unix sockets")
	}
	return tracker.Filter{
		NoSeed:    o.noSeed,
		Events:    o.eventTypes(),
		Kind:      kind,
		PIDs:      o.pids,
		Comms:     o.comms,
		Ports:     o.ports,
		Prefixes:  o.prefixes,
		Direction: o.direction,
		Buffer:    o.buffer,
	}, nil
}

// eventTypes returns the types to show; none is all but state.
func (o *watchOptions) eventTypes() []conn.EventType {
	if !o.states {
		return o.events
	}
	types := slices.Clone(o.events)
	if len(types) == 0 {
		for typ := conn.EventSeed; typ < conn.EventState; typ++ {
			types = append(types, typ)
		}
	}
	return append(types, conn.EventState)
}

func (o *watchOptions) config(stderr io.Writer) tracker.Config {
	cfg := tracker.Config{Source: o.source, Hooks: o.hooks, ProcFS: o.procfs, PollInterval: o.pollInterval}
	cfg.States = slices.Contains(o.eventTypes(), conn.EventState)
	o.configure(&cfg)
	if !o.quiet {
		cfg.Logger = newLogger(stderr)
	}
	return cfg
}

// encoder makes lines of events.
type encoder interface {
	AppendHeader(dst []byte) []byte
	AppendEvent(dst []byte, ev *conn.Event) []byte
}

func (o *watchOptions) encoder(stdout io.Writer) encoder {
	if o.format == "json" {
		return render.NewJSON()
	}
	return render.NewText(stdio.Color(stdout), stdio.Unicode())
}

// copy writes the events of s to out until ctx ends, or as many as were asked for.
func (o *watchOptions) copy(ctx context.Context, out io.Writer, enc encoder, s *tracker.Subscription, sum *summary) error {
	var line []byte
	if !o.noHeader {
		line = enc.AppendHeader(line)
	}
	if _, err := out.Write(line); err != nil {
		return err
	}
	// The subscription is closed and then read to its end, rather than left where
	// the context ended, so that what has been seen is also shown.
	defer context.AfterFunc(ctx, func() { s.Close() })()
	for o.count == 0 || sum.total < o.count {
		ev, err := s.Next(context.Background())
		if errors.Is(err, os.ErrClosed) && ctx.Err() != nil {
			break
		}
		if err != nil {
			return err
		}
		if o.listening && ev.Raddr.IsValid() {
			continue
		}
		line = enc.AppendEvent(line[:0], &ev)
		if _, err := out.Write(line); err != nil {
			return err
		}
		sum.add(&ev)
	}
	if cause := context.Cause(ctx); stdio.IsClosed(cause) {
		return cause
	}
	return nil
}
