//go:build !linux

package fallback

import (
	"errors"
	"fmt"
)

// Netlink returns an error: sock_diag is Linux's.
func Netlink(procfsRoot string) (Source, error) {
	return nil, fmt.Errorf("netlink: sock_diag exists on Linux only: %w", errors.ErrUnsupported)
}

// Procfs returns an error: only Linux has its sockets in procfs.
func Procfs(root string) (Source, error) {
	return nil, fmt.Errorf("procfs: socket tables in procfs exist on Linux only: %w", errors.ErrUnsupported)
}
