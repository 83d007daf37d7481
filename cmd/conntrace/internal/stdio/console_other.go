//go:build !windows

package stdio

import (
	"errors"
	"os"
	"syscall"
)

func enableColor(*os.File) bool { return true }

// IsClosed reports whether err says that nobody reads the pipe any more.
func IsClosed(err error) bool { return errors.Is(err, syscall.EPIPE) }
