package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/pkg/tracker"
	"github.com/spf13/cobra"
)

// A diagnosis is what doctor finds.
type diagnosis struct {
	System  sysinfo.Info  `json:"system"`
	Source  *string       `json:"source"` // null: none works
	Error   *string       `json:"error"`  // why none does
	Hooks   []hookReport  `json:"hooks"`
	Refused []refusedItem `json:"refused"`
	Limits  []string      `json:"limits"`

	// watch gives up the capabilities that it no longer needs.
	DropsPrivileges bool `json:"drops_privileges"`
}

type hookReport struct {
	Purpose string `json:"purpose"`
	Attach  string `json:"attach"`
	Program uint32 `json:"program"`
}

type refusedItem struct {
	What   string `json:"what"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
}

func newDoctorCommand() *cobra.Command {
	var source sourceFlags
	var hooks []string
	var format string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show how connections are tracked here, and what stands in the way of better",
		Long: `Opens a tracker as watch does and shows its source, every hook that is attached,
and each better source or hook that was refused, with the reason and what would
mend it. Above that stand the facts of the system that decide it.

Exit status: 0 if connections can be tracked, 1 if no source works, 2 for wrong
use.`,
		Example: `  conntrace doctor
  sudo conntrace doctor                compare
  conntrace doctor --backend ebpf      is it ebpf or nothing?
  conntrace doctor --format json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := source.check(); err != nil {
				return err
			}
			if err := checkHooks(hooks, source.source); err != nil {
				return err
			}
			d, failure := diagnose(cmd, source, hooks)
			if err := d.write(cmd.OutOrStdout(), format); err != nil {
				return err
			}
			return failure
		},
	}
	cmd.Flags().SortFlags = false
	addFormat(cmd, &format, "text", "json")
	source.add(cmd)
	addHooks(cmd, &hooks)
	return cmd
}

// diagnose opens a tracker and describes it. Its error says that none can be had.
func diagnose(cmd *cobra.Command, flags sourceFlags, hooks []string) (diagnosis, error) {
	d := diagnosis{
		System: sysinfo.Read(), DropsPrivileges: dropsPrivileges(),
		Hooks: []hookReport{}, Refused: []refusedItem{}, Limits: []string{},
	}
	t, err := tracker.Open(cmd.Context(), tracker.Config{Source: flags.source, Hooks: hooks, ProcFS: flags.procfs})
	if err != nil {
		d.Error = new(err.Error())
		// Whatever the cause, a permission too, the status says that nothing works.
		return d, fmt.Errorf("no source works: %s", *d.Error)
	}
	defer t.Close()

	info := t.Info()
	d.Source = new(string(info.Source))
	d.Limits = append(d.Limits, info.Limits...)
	for _, h := range info.Hooks {
		d.Hooks = append(d.Hooks, hookReport(h))
	}
	for _, r := range info.Refused {
		d.Refused = append(d.Refused, refusedItem{What: r.What, Reason: r.Err.Error(), Remedy: r.Remedy})
	}
	return d, nil
}

func (d diagnosis) write(w io.Writer, format string) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(d)
	}
	_, err := io.WriteString(w, d.text())
	return err
}

// text returns the diagnosis for people.
func (d diagnosis) text() string {
	var b strings.Builder
	d.systemText(&b)

	if d.Source == nil {
		fmt.Fprintf(&b, "\nNo source works: %s\n", oneLine(*d.Error))
	} else {
		fmt.Fprintf(&b, "\nSource in use: %s\n", *d.Source)
	}
	for _, h := range d.Hooks {
		fmt.Fprintf(&b, "  %-18s  %s (program %d)\n", h.Purpose, h.Attach, h.Program)
	}
	if len(d.Refused) > 0 {
		b.WriteString("\nRefused\n")
	}
	for _, r := range d.Refused {
		fmt.Fprintf(&b, "  %s: %s\n", r.What, oneLine(r.Reason))
		if r.Remedy != "" {
			fmt.Fprintf(&b, "    to get it: %s\n", r.Remedy)
		}
	}
	if len(d.Limits) > 0 {
		b.WriteString("\nWhat cannot be seen this way\n")
	}
	for _, limit := range d.Limits {
		fmt.Fprintf(&b, "  %s\n", limit)
	}
	return b.String()
}

func (d diagnosis) systemText(b *strings.Builder) {
	line := func(what, fact string) {
		fmt.Fprintf(b, "  %-16s  %s\n", what, cmp.Or(fact, "unknown"))
	}
	b.WriteString("System\n")
	line("kernel", strings.TrimSpace(d.System.OS+" "+d.System.Release+" "+d.System.Arch))
	l := d.System.Linux
	if l == nil {
		return
	}
	line("user ID", fmt.Sprint(l.UID))
	line("BTF", map[bool]string{true: "present", false: "missing"}[l.BTF])
	line("lockdown", l.Lockdown)
	line("unprivileged BPF", l.UnprivilegedBPF)
	line("seccomp", l.Seccomp)
	line("tracefs", cmp.Or(l.Tracefs, "not mounted"))
	line("PID namespace", map[bool]string{true: "the host's", false: "a container's"}[l.HostPIDs])
	line("user namespace", map[bool]string{true: "the host's", false: "a container's"}[l.HostUsers])
	line("privileges", map[bool]string{
		true:  "watch gives up what it no longer needs",
		false: "watch keeps them, as this build uses cgo (CGO_ENABLED=0 go build)",
	}[d.DropsPrivileges])
	for i, c := range l.Capabilities {
		label := ""
		if i == 0 {
			label = "capabilities"
		}
		line(label, fmt.Sprintf("%-19s  %s", c.Name, map[bool]string{true: "present", false: "missing"}[c.Present]))
	}
}
