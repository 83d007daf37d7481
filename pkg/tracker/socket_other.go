//go:build !linux

package tracker

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/conntrace/conntrace/pkg/conn"
)

func duplicate(*conn.Conn) (*os.File, error) {
	return nil, fmt.Errorf("sockets are made of rows on Linux only, not on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// Without a duplicate there is nothing to check.
func connected(*os.File) error { return errors.ErrUnsupported }
func datagram(*os.File) error  { return errors.ErrUnsupported }
func listening(*os.File) error { return errors.ErrUnsupported }
