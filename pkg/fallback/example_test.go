package fallback_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// The best source that this system has prints who listens on what.
func Example() {
	src, err := fallback.Netlink("/proc")
	if err != nil {
		src, err = fallback.Procfs("/proc")
	}
	if errors.Is(err, errors.ErrUnsupported) {
		src, err = fallback.Native()
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	snap, err := src.Snapshot(context.Background(), fallback.Query{Kind: conn.KindTCP})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, warning := range snap.Warnings {
		fmt.Println("incomplete:", warning)
	}
	for _, c := range snap.Conns {
		if c.Status == conn.StatusListen {
			fmt.Println(c.Laddr, "by process", c.PID)
		}
	}
}
