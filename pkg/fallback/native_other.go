//go:build !windows

package fallback

import (
	"errors"
	"fmt"
	"runtime"
)

func openNative() (nativeSystem, error) {
	return nil, fmt.Errorf("there is no native source for %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
