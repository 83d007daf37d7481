package tracker_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestListenUnbound: listen(2) chooses a port for a socket that has none, after the
// kernel has told of LISTEN (inet_csk_listen_start()).
func TestListenUnbound(t *testing.T) {
	tr := open(t, tracker.Config{Freshness: tracker.NeverRefresh})
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, PIDs: []int32{int32(os.Getpid())}})
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	listenOnce := func() {
		t.Helper()
		if err := unix.Listen(fd, 1); err != nil {
			t.Fatal(err)
		}
		want, err := addressOf(unix.SYS_GETSOCKNAME, fd)
		if err != nil {
			t.Fatal(err)
		}
		if e := s.event(conn.EventListen); e.Laddr != want {
			t.Errorf("listens on %s, told as %s", want, e.Laddr)
		}
		eventually(t, "a row with the port", func() bool {
			rows, err := tr.Connections(conn.KindTCP4)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rows {
				if r.Status == conn.StatusListen && r.Laddr == want {
					return true
				}
			}
			return false
		})
	}
	listenOnce()
	// It gives the port back, and gets another one.
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	listenOnce()
}
