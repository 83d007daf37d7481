package fallback

import (
	"context"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// TestPollerSockets polls while a connection comes and goes.
func TestPollerSockets(t *testing.T) {
	forSources(t, func(t *testing.T, src Source) {
		p := NewPoller(src, Query{Kind: conn.KindInet4})
		// poll returns the events of the server's port.
		port := uint16(0)
		poll := func() []conn.Event {
			t.Helper()
			events, err := p.Poll(context.Background())
			must(t, err)
			var ours []conn.Event
			for _, e := range events {
				if port != 0 && (e.Laddr.Port() == port || e.Raddr.Port() == port) {
					ours = append(ours, e)
				}
			}
			return ours
		}
		expect := func(when string, events []conn.Event, want ...string) {
			t.Helper()
			var got []string
			for _, e := range events {
				got = append(got, e.Type.String()+" "+e.Direction.String())
				if e.PID != int32(os.Getpid()) || e.Process == nil {
					t.Errorf("%s: %v of process %d", when, e.Type, e.PID)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", when, got, want)
			}
		}

		poll()
		l := listen(t, unix.AF_INET, [16]byte{})
		port = localAddr(t, l).Port()
		expect("listen", poll(), "listen unknown")
		client := connect(t, unix.AF_INET, [16]byte{}, port)
		expect("connect", poll(), "connect outbound")
		server := accept(t, l)
		expect("accept", poll(), "accept inbound")
		expect("nothing", poll())
		must(t, unix.Shutdown(client, unix.SHUT_WR))
		must(t, unix.Shutdown(server, unix.SHUT_WR))
		waitState(t, client, conn.StatusClose)
		waitState(t, server, conn.StatusClose)
		expect("close", poll(), "close inbound", "close outbound")
		expect("TIME_WAIT", poll())
	})
}
