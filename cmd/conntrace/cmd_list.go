package main

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/conntrace/conntrace/cmd/conntrace/internal/render"
	"github.com/conntrace/conntrace/cmd/conntrace/internal/stdio"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
	"github.com/spf13/cobra"
)

type listOptions struct {
	sourceFlags
	kindFlags
	matchFlags
	pid           int32
	states        []conn.Status
	format        string
	noHeader      bool
	quiet         bool
	holders       bool
	allNamespaces bool
}

func newListCommand() *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the sockets that exist now",
		Long: `Lists the TCP and UDP sockets that exist now, with the process that holds each:
the rows of psutil's net_connections(). A terminal gets a table that fits its
width, sorted by protocol, listeners first, then by local port; the other formats
and a table for a pipe cut nothing, and only tables are sorted.

-t -u -x choose protocols and -4 -6 versions of IP, as in ss. Beside --kind they
narrow it. What is not known is "-" in a table, null in JSON and empty in CSV.

Exit status: 0 done; 1 failed; 2 wrong use; with --pid also 3 no such process,
4 permission denied, 5 the process is a zombie.`,
		Example: `  conntrace list                       TCP and UDP
  conntrace list -tl                   TCP listeners, as ss -tl
  conntrace list --port 5432 --state established
  conntrace list --pid 1234 --kind all
  conntrace list --addr 10.0.0.0/8 --format csv > inside.csv
  conntrace list -o ndjson | jq -r 'select(.uid == 0) | .comm'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.kindFlags.add(cmd)
	flags.VarP(&value[int32]{dst: &o.pid, name: "PID", parse: parsePID}, "pid", "p", "only what this process holds, with its own descriptors")
	o.matchFlags.add(cmd)
	flags.Var(&values[conn.Status]{dst: &o.states, name: "STATE", parse: conn.ParseStatus}, "state", "only in this state, such as established")
	flags.BoolVar(&o.holders, "holders", false, "every descriptor of a socket: a row each in a table or CSV, a list in JSON")
	flags.BoolVar(&o.allNamespaces, "all-namespaces", false, "the sockets of every network namespace; a table shows which")
	addFormat(cmd, &o.format, "table", "json", "ndjson", "csv")
	flags.BoolVarP(&o.noHeader, "no-header", "H", false, "no line of column names")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "no notes on stderr, only errors")
	o.sourceFlags.add(cmd)
	complete(cmd, "pid", nil)
	completeList(cmd, "state", stateNames())
	return cmd
}

func stateNames() []string {
	var names []string
	for s := conn.StatusNone; s <= conn.StatusBound; s++ {
		names = append(names, s.String())
	}
	return names
}

func (o *listOptions) run(cmd *cobra.Command) error {
	kind, err := o.resolve()
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	cfg := tracker.SnapshotConfig{Source: o.source, ProcFS: o.procfs}
	cfg.Kind, cfg.PID, cfg.Holders, cfg.AllNamespaces = kind, o.pid, o.holders, o.allNamespaces
	snapshot, err := tracker.TakeSnapshot(cmd.Context(), cfg)
	if err == nil && o.pid != 0 && len(snapshot.Conns) == 0 && isZombie(o.procfs, o.pid) {
		// psutil answers [] to root here, and so does the library. A user is better told.
		err = errZombie
	}
	if err != nil {
		return o.explain(err)
	}
	conns := slices.DeleteFunc(snapshot.Conns, func(c conn.Conn) bool { return !o.match(&c) })
	if err := o.write(cmd.OutOrStdout(), conns); err != nil {
		return err
	}
	if !o.quiet {
		noteSnapshot(cmd.ErrOrStderr(), &snapshot)
	}
	return nil
}

// match reports whether c is to be listed.
func (o *listOptions) match(c *conn.Conn) bool {
	switch {
	case o.listening && !isListening(c):
		return false
	case len(o.states) > 0 && !slices.Contains(o.states, c.Status):
		return false
	}
	return o.matchFlags.match(c)
}

func (o *listOptions) write(w io.Writer, conns []conn.Conn) error {
	if o.holders && (o.format == "table" || o.format == "csv") {
		conns = splitHolders(conns)
	}
	if o.format == "table" {
		table := render.Table{
			Width: stdio.Width(w), Unicode: stdio.Unicode(), NoHeader: o.noHeader, NetNS: o.allNamespaces,
		}
		return table.Write(w, conns)
	}

	out := bufio.NewWriterSize(w, 64<<10)
	var line []byte
	switch {
	case o.format == "json":
		out.WriteString("[")
	case o.format == "csv" && !o.noHeader:
		out.Write(render.AppendCSVHeader(nil))
	}
	for i := range conns {
		line = line[:0]
		switch o.format {
		case "json":
			if i > 0 {
				line = append(line, ',')
			}
			line = render.AppendConnJSON(append(line, '\n'), &conns[i])
		case "ndjson":
			line = append(render.AppendConnJSON(line, &conns[i]), '\n')
		case "csv":
			line = render.AppendConnCSV(line, &conns[i])
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
	if o.format == "json" {
		out.WriteString("\n]\n")
	}
	return out.Flush() // bufio keeps the first error of any write
}

// splitHolders returns a row for each descriptor of each socket, where they are
// known.
func splitHolders(conns []conn.Conn) []conn.Conn {
	processes := make(map[int32]*conn.Process)
	for i := range conns {
		if c := &conns[i]; c.Process != nil {
			processes[c.PID] = c.Process
		}
	}
	var rows []conn.Conn
	for _, c := range conns {
		if len(c.Holders) == 0 {
			rows = append(rows, c)
			continue
		}
		for _, h := range c.Holders {
			c.PID, c.FD, c.Process = h.PID, h.FD, processes[h.PID]
			rows = append(rows, c)
		}
	}
	return rows
}

// explain says what an error about the process that was asked for means.
func (o *listOptions) explain(err error) error {
	if o.pid == 0 {
		return err
	}
	switch status := exitStatus(err); {
	case status == exitNoProcess:
		return fmt.Errorf("process %d: %w", o.pid, conn.ErrNoSuchProcess)
	case status == exitZombie, status == exitPermission && isZombie(o.procfs, o.pid):
		return fmt.Errorf("process %d: %w: it has ended and holds no sockets any more", o.pid, errZombie)
	case status == exitPermission:
		return fmt.Errorf("process %d: %w to read its descriptors; %s", o.pid, fs.ErrPermission, toSeeAll())
	}
	return err
}

// isZombie reports whether procfs shows the process pid as one that has ended but
// that nobody has waited for.
func isZombie(procfs string, pid int32) bool {
	stat, err := os.ReadFile(filepath.Join(cmp.Or(procfs, "/proc"), strconv.Itoa(int(pid)), "stat"))
	// The state stands behind the name, which is in parentheses and may hold some.
	return err == nil && bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" Z "))
}
