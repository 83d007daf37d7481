// Package mount mounts file systems of the kernel where nobody else sees it.
package mount

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Detached mounts a file system such as tracefs in no directory, so that the system
// stays as it was. It returns a descriptor of its root, with which it goes. Needs
// CAP_SYS_ADMIN and Linux 5.2.
func Detached(fstype string) (root int, err error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig %s: %w", fstype, err)
	}
	root, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", fstype, err)
	}
	return root, nil
}
