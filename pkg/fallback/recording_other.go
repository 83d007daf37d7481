//go:build !linux && !windows && !darwin && !freebsd && !openbsd && !netbsd && !illumos && !solaris

package fallback

import (
	"context"

	"github.com/conntrace/conntrace/internal/rawtable"
)

// rawTables returns the error of a system without a source.
func rawTables(context.Context, int32) (rawtable.Tables, error) {
	_, err := openNative()
	return nil, err
}
