// Command conntrace shows TCP connections as they open, fail and close, and the
// sockets that exist now, each with the process that holds it.
//
// There is one file a command (cmd_watch.go, cmd_list.go and so on); what they
// print is made by internal/render.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// A write to a pipe that nobody reads shall be an error, on which the command
	// ends in order, and not a signal that kills it.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the command line args and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(context.Background())
	return report(cmd, err)
}
