//go:build !windows && !darwin && !freebsd && !openbsd && !netbsd && !illumos && !solaris

package fallback

import (
	"errors"
	"fmt"
	"runtime"
)

// openNative returns an error. Records of DragonFly embed structs of its kernel, and AIX
// has no interface but the kernel's memory; Linux has sources of its own.
func openNative() (nativeSystem, error) {
	return nil, fmt.Errorf("there is no native source for %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
