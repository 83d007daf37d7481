//go:build !linux

package stdio

import "io"

// OnClosed does nothing here: that the reader has gone shows at the next write.
func OnClosed(io.Writer, func()) {}
