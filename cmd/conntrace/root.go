package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newRootCommand returns the root command: it is watch under the program's name,
// with the other commands below it.
func newRootCommand() *cobra.Command {
	root := newWatchCommand()
	root.Use = "conntrace"
	root.Short = "See TCP connections as they open, fail and close, and who holds them"
	root.Long = `Shows every TCP connection as it opens, fails and closes, with its process: that
is the command watch, which needs no name. The command list shows the sockets
that exist now.
` + watchExitStatus
	root.Example = `  conntrace                            all of it, until Ctrl-C
  conntrace --comm nginx --port 443    of one service
  conntrace -o json --duration 1m      a minute of it, for programs
  conntrace list -tl                   who listens
  conntrace doctor                     why it sees what it sees`
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.Args = noArguments
	root.SetFlagErrorFunc(flagError)
	root.SuggestionsMinimumDistance = 2

	root.AddCommand(newWatchCommand(), newListCommand(), newDoctorCommand(), newVerifyCommand(), newRecordCommand(), newVersionCommand())
	root.SetHelpCommand(newHelpCommand())
	root.InitDefaultCompletionCmd()
	completion, _, _ := root.Find([]string{"completion"})
	for _, shell := range completion.Commands() {
		shell.Args = noArguments
	}
	completion.Args = noArguments
	completion.RunE = func(*cobra.Command, []string) error {
		return usageErrorf("which shell? valid ones are bash, fish, powershell, zsh")
	}
	return root
}

func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Show the help of a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err == nil {
				err = noArguments(about, rest)
			}
			if err != nil {
				return usageError{err}
			}
			return about.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, c := range cmd.Root().Commands() {
				if c.IsAvailableCommand() && len(args) == 0 {
					names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// noArguments is for commands that take flags only.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasAvailableSubCommands() {
		return usageErrorf("%s takes no argument %q", cmd.Name(), args[0])
	}
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		return usageErrorf("unknown command %q; did you mean %s?", args[0], strings.Join(similar, " or "))
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return usageErrorf("unknown command %q; valid ones are %s", args[0], strings.Join(names, ", "))
}

// flagError words what is wrong with a flag: our parsers say all there is to say
// about a bad value but the flag's name.
func flagError(_ *cobra.Command, err error) error {
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		err = fmt.Errorf("--%s: %w", invalid.GetFlag().Name, errors.Unwrap(invalid))
	}
	return usageError{err}
}
