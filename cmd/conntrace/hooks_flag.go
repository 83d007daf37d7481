package main

import (
	"strings"

	"github.com/conntrace/conntrace/pkg/tracker"
	"github.com/spf13/cobra"
)

// addHooks adds --hooks, which forces how BPF programs see things. Every command
// that opens a tracker has it.
func addHooks(cmd *cobra.Command, hooks *[]string) {
	cmd.Flags().Var(&values[string]{
		dst: hooks, name: "HOOK", parse: oneOf("hook", tracker.HookNames()),
	}, "hooks", "only these hooks of the kernel: "+strings.Join(tracker.HookNames(), ", "))
	completeList(cmd, "hooks", tracker.HookNames())
}

// checkHooks returns an error if hooks are given for a source that has none.
func checkHooks(hooks []string, source tracker.Source) error {
	if len(hooks) > 0 && source != tracker.SourceAuto && source != tracker.SourceEBPF {
		return usageErrorf("--hooks is for --backend %s, not %s", tracker.SourceEBPF, source)
	}
	return nil
}
