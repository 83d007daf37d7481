package main

import (
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
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
	pids         []int32
	direction    conn.Direction
	events       []conn.EventType
	noSeed       bool
	duration     time.Duration
	count        uint64
	pollInterval time.Duration
	hooks        []string
	format       string
	noHeader     bool
	quiet        bool
}

const watchExitStatus = `
Exit status: 0 done, also by Ctrl-C or a closed pipe; 1 failed; 2 wrong use;
4 permission denied.`

func newWatchCommand() *cobra.Command {
	o := watchOptions{pollInterval: time.Second}
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show TCP connections as they open, fail and close (the default)",
		Long: `Shows the TCP connections and listeners that exist (seed), then each one that is
opened here (connect) or accepted (accept), that fails (fail), listens (listen)
or ends (close), with its process. A line tells how many events were lost, should
that ever happen (gap).

Filters combine; of the values of one, any will do. What counts is the process
that owns the connection, which is who connected or accepted. Ctrl-C ends it with
a summary on stderr.
` + watchExitStatus,
		Example: `  conntrace watch
  conntrace watch --no-seed --event connect,fail --direction outbound
  conntrace watch --addr 10.0.0.0/8,fd00::/8 --port 5432
  conntrace watch --pid 1234 --count 10
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
	flags.Var(&value[time.Duration]{dst: &o.pollInterval, text: "1s", name: "TIME", parse: parseDuration}, "poll-interval", "time between two looks, where the source has to be polled")
	complete(cmd, "direction", []string{conn.Inbound.String(), conn.Outbound.String()})
	completeList(cmd, "event", conn.EventNames())
	for _, flag := range []string{"pid", "duration", "count", "poll-interval"} {
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
	if !o.quiet {
		noteSource(cmd.ErrOrStderr(), t.Info(), o.pollInterval)
	}
	if o.duration > 0 {
		var expire context.CancelFunc
		ctx, expire = context.WithTimeout(ctx, o.duration)
		defer expire()
	}
	stdio.OnClosed(cmd.OutOrStdout(), func() { cancel(syscall.EPIPE) })

	out := newStream(cmd.OutOrStdout(), cancel)
	sum := summary{start: time.Now()}
	err = o.copy(ctx, out, o.encoder(cmd.OutOrStdout()), s, &sum)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil && !o.quiet {
		sum.write(cmd.ErrOrStderr(), t.Stats())
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
		Events:    o.events,
		Kind:      kind,
		PIDs:      o.pids,
		Comms:     o.comms,
		Ports:     o.ports,
		Prefixes:  o.prefixes,
		Direction: o.direction,
		Buffer:    watchBuffer,
	}, nil
}

func (o *watchOptions) config(stderr io.Writer) tracker.Config {
	cfg := tracker.Config{Source: o.source, Hooks: o.hooks, ProcFS: o.procfs, PollInterval: o.pollInterval}
	if !o.quiet {
		log.SetFlags(0)
		log.SetPrefix("conntrace: ")
		log.SetOutput(stderr)
		slog.SetLogLoggerLevel(slog.LevelWarn)
		cfg.Logger = slog.Default()
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
