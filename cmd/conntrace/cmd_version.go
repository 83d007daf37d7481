package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// A version says what was built, as the Go toolchain recorded it.
type version struct {
	Version  string `json:"version"`            // of the module; "(devel)" if built from changed sources
	Revision string `json:"revision,omitempty"` // of the repository
	Time     string `json:"time,omitempty"`     // of the revision
	Modified bool   `json:"modified"`           // the sources differ from the revision
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

func newVersionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Long: `Shows the version of conntrace, the revision it was built from, and the version
of Go that built it.

Exit status: 0, or 2 for wrong use.`,
		Example: `  conntrace version
  conntrace version --format json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return readVersion().write(cmd.OutOrStdout(), format)
		},
	}
	addFormat(cmd, &format, "text", "json")
	return cmd
}

func readVersion() version {
	v := version{Version: "unknown", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Version = info.Main.Version
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func (v version) write(w io.Writer, format string) error {
	if format == "json" {
		return json.NewEncoder(w).Encode(v)
	}
	revision := ""
	if v.Revision != "" {
		revision = ", revision " + v.Revision
		if v.Modified {
			revision += " (modified)"
		}
	}
	_, err := fmt.Fprintf(w, "conntrace %s%s, %s %s/%s\n", v.Version, revision, v.Go, v.OS, v.Arch)
	return err
}
