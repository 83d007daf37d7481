package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// pack writes the folder dir to w as a cpio archive in the newc format, which the
// kernel unpacks as the guest's root (Documentation/driver-api/early-userspace/
// buffer-format.rst). Symbolic links are followed.
func pack(w io.Writer, dir string) error {
	out := bufio.NewWriterSize(w, 1<<20)
	inode := 0
	entry := func(name string, mode uint32, data []byte) error {
		inode++
		var b bytes.Buffer
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		pad(&b)
		b.Write(data)
		pad(&b)
		_, err := out.Write(b.Bytes())
		return err
	}
	var walk func(name string) error
	walk = func(name string) error {
		path := filepath.Join(dir, name)
		fi, err := os.Stat(path)
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return entry(name, unix.S_IFREG|uint32(fi.Mode().Perm()), data)
		}
		if name != "." {
			if err := entry(name, unix.S_IFDIR|0o755, nil); err != nil {
				return err
			}
		}
		children, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, c := range children {
			if err := walk(filepath.Join(name, c.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk("."); err != nil {
		return err
	}
	if err := entry("TRAILER!!!", 0, nil); err != nil {
		return err
	}
	return out.Flush()
}

// pad fills b up to a multiple of 4 bytes.
func pad(b *bytes.Buffer) { b.Write(make([]byte, -b.Len()&3)) }
