package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/conntrace/conntrace/cmd/conntrace/internal/stdio"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/spf13/cobra"
)

// The exit statuses.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2
	exitNoProcess  = 3
	exitPermission = 4
	exitZombie     = 5
)

// errZombie is told apart by the command line only: to psutil, and so to the
// library, a zombie is a process without sockets, or one that may not be read.
var errZombie = errors.New("process is a zombie")

// A usageError says that the command line is wrong.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usageErrorf(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// exitStatus returns the status that err stands for.
func exitStatus(err error) int {
	switch {
	case err == nil, stdio.IsClosed(err):
		return exitOK
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.Is(err, conn.ErrNoSuchProcess):
		return exitNoProcess
	case errors.Is(err, errZombie):
		return exitZombie
	case errors.Is(err, fs.ErrPermission):
		return exitPermission
	}
	return exitFailed
}

// report says on stderr what went wrong with cmd, and returns the exit status.
func report(cmd *cobra.Command, err error) int {
	status := exitStatus(err)
	switch status {
	case exitOK:
	case exitUsage:
		say(cmd.ErrOrStderr(), "%v; see '%s --help'", err, cmd.CommandPath())
	default:
		say(cmd.ErrOrStderr(), "%v", err)
	}
	return status
}
