//go:build darwin || freebsd || openbsd || netbsd

package fallback

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/pkg/conn"
)

// A sysctlTable is a table of sockets and what it has.
type sysctlTable struct {
	kinds    conn.Kind
	name     string
	optional bool // kernels may lack it
}

// sysctlAttempts bounds how often a table is asked for that grows all the time. The
// kernel gives room for some more records than there are when asked how many.
const sysctlAttempts = 10

// readSysctl returns what the sysctl says.
func readSysctl(ctx context.Context, name string, args ...int) ([]byte, error) {
	for range sysctlAttempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := unix.SysctlRaw(name, args...)
		if err == nil {
			return b, nil
		}
		if err != unix.ENOMEM {
			return nil, fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	return nil, fmt.Errorf("sysctl %s: %w, %d times over: the table grows too fast", name, unix.ENOMEM, sysctlAttempts)
}

// readSysctls reads those of all that have sockets of the kinds.
func readSysctls(ctx context.Context, all []sysctlTable, kinds conn.Kind, tables rawtable.Tables, args ...int) error {
	for _, t := range all {
		if t.kinds&kinds == 0 {
			continue
		}
		b, err := readSysctl(ctx, t.name, args...)
		// x/sys says EINVAL where NetBSD has no such name.
		if t.optional && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)) {
			continue
		}
		if err != nil {
			return err
		}
		tables[t.name] = b
	}
	return nil
}
