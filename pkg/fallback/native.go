package fallback

import (
	"errors"
	"fmt"
	"runtime"
)

// Native returns the source that reads the socket tables of a system other than
// Linux. The error wraps [errors.ErrUnsupported] where there is none.
func Native() (Source, error) {
	return nil, fmt.Errorf("native: there is no native source for %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
