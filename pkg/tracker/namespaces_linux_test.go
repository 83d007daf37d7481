package tracker_test

import (
	"os"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestAllNamespaces: Connections shows every network namespace to those who ask for
// it, and what was in one is gone from the table once the namespace is.
func TestAllNamespaces(t *testing.T) {
	before, beforeNS := startElsewhere(t, "self")
	before.ask("127.0.0.1:0", 2)
	p := connect(t, "tcp4", "127.0.0.1:0")
	tr := open(t, tracker.Config{AllNamespaces: true, Freshness: tracker.NeverRefresh})
	after, afterNS := startElsewhere(t, "self")
	after.ask("127.0.0.1:0", 2)

	count := func(netns uint32, pid int32) (n int) {
		t.Helper()
		rows, err := tr.Connections(conn.KindTCP)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.NetNS == netns && r.Status != conn.StatusTimeWait {
				n++
				if r.PID != pid && pid != 0 {
					t.Errorf("%s -> %s in namespace %d belongs to %d, want %d", r.Laddr, r.Raddr, netns, r.PID, pid)
				}
			}
		}
		return n
	}
	for _, ns := range []struct {
		netns uint32
		pid   int32
	}{{beforeNS, before.pid()}, {afterNS, after.pid()}} {
		if n := count(ns.netns, ns.pid); n != 5 { // a listener and two connections
			t.Errorf("%d rows of namespace %d, want 5", n, ns.netns)
		}
	}
	own, err := tr.Connections(conn.KindTCP)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, r := range own {
		found = found || r.Raddr == addr(p.client.RemoteAddr()) && r.PID == int32(os.Getpid())
	}
	if !found {
		t.Error("no row of the caller's own namespace")
	}

	for _, helper := range []*process{before, after} {
		helper.cmd.Process.Kill()
		helper.stop()
	}
	for _, netns := range []uint32{beforeNS, afterNS} {
		eventually(t, "no rows of a namespace that is gone", func() bool { return count(netns, 0) == 0 })
	}
	if st := tr.Stats(); st.Lost.Events() != 0 || st.Reconciled != 0 {
		t.Errorf("account: %+v", st)
	}
}
