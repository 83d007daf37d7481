package tracker

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// TestWindows tracks a connection from its beginning to its end with the source that
// Windows has.
func TestWindows(t *testing.T) {
	self := int32(os.Getpid())
	tr, err := Open(t.Context(), Config{PollInterval: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if info := tr.Info(); info.Source != SourceNative || len(info.Refused) > 0 || len(info.Hooks) > 0 || len(info.Limits) == 0 {
		t.Errorf("%+v", info)
	}
	sub, err := tr.Subscribe(Filter{PIDs: []int32{self}, NoSeed: true})
	if err != nil {
		t.Fatal(err)
	}

	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	local := conn.AddrFrom(netip.MustParseAddrPort(client.LocalAddr().String()))
	next := func() conn.Event {
		t.Helper()
		for {
			ev, err := sub.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if ev.Laddr == local {
				return ev
			}
		}
	}
	if ev := next(); ev.Type != conn.EventConnect || ev.Direction != conn.Outbound || ev.PID != self || ev.Process == nil {
		t.Errorf("connect: %+v", ev)
	}

	conns, err := NetConnectionsPID(t.Context(), conn.KindTCP, self)
	if err != nil {
		t.Fatal(err)
	}
	live, err := tr.Connections(conn.KindAll)
	if err != nil {
		t.Fatal(err)
	}
	for _, rows := range [][]conn.Conn{conns, live} {
		found := false
		for i := range rows {
			if c := &rows[i]; c.Laddr == local {
				found = c.Status == conn.StatusEstablished && c.PID == self && c.Process != nil
				if _, err := File(c); !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("File: %v", err)
				}
			}
		}
		if !found {
			t.Errorf("no row of %s in %+v", local, rows)
		}
	}

	client.Close()
	if ev := next(); ev.Type != conn.EventClose || ev.PID != self {
		t.Errorf("close: %+v", ev)
	}
}
