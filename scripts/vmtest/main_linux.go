// Command vmtest is the part of scripts/vmtest.sh that is not a shell script:
//
//	vmtest pack DIR    on the host: writes DIR as an initramfs to stdout
//	/init              in the guest, as process 1: runs the commands, sends what
//	                   came of them to the host, and powers off
//	true, sleep N      in the guest: there are no other programs, and tests start these
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

func main() {
	switch {
	case filepath.Base(os.Args[0]) == "true":
	case filepath.Base(os.Args[0]) == "sleep" && len(os.Args) == 2:
		if d, err := time.ParseDuration(os.Args[1] + "s"); err == nil {
			time.Sleep(d)
		}
	case os.Getpid() == 1:
		guest()
	case len(os.Args) == 3 && os.Args[1] == "pack":
		if err := pack(os.Stdout, os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "vmtest pack:", err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: vmtest pack DIR >initramfs")
		os.Exit(2)
	}
}
