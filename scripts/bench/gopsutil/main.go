// Gopsutil times gopsutil's net.Connections("tcp"), in turns.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/shirou/gopsutil/v4/net"

	"github.com/conntrace/conntrace/scripts/bench/turns"
)

func main() {
	err := turns.Serve(version, func() (int, error) {
		rows, err := net.Connections("tcp")
		return len(rows), err
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "gopsutil:", err)
		os.Exit(1)
	}
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/shirou/gopsutil/v4" {
				return m.Version
			}
		}
	}
	return ""
}
