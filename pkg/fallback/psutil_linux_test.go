package fallback

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
)

// psutilScript prints psutil's rows, as [formatRow] does, for the kind and the
// process that it is given; the process 0 is the whole system.
const psutilScript = `
import os, psutil, sys

def addr(a):
    if isinstance(a, str):
        return 'unix:' + os.fsencode(a).hex()
    return '%s|%d' % (a.ip, a.port) if a else '-'

kind, pid = sys.argv[1], int(sys.argv[2])
if pid:
    p = psutil.Process(pid)
    rows = getattr(p, 'net_connections', getattr(p, 'connections', None))(kind)
else:
    rows = psutil.net_connections(kind)
for r in rows:
    print(r.fd, int(r.family), int(r.type), addr(r.laddr), addr(r.raddr), r.status, pid or r.pid)
`

func formatRow(c conn.Conn) string {
	pid := "None"
	if c.PID != 0 {
		pid = strconv.Itoa(int(c.PID))
	}
	return fmt.Sprintln(c.FD, uint16(c.Family), uint8(c.Type), formatAddr(c.Laddr), formatAddr(c.Raddr), c.Status, pid)
}

func formatAddr(a conn.Addr) string {
	switch {
	case a.IsUnix():
		return "unix:" + hex.EncodeToString([]byte(a.Path()))
	case a.IsValid():
		return fmt.Sprintf("%s|%d", a.IP(), a.Port())
	}
	return "-"
}

// TestPsutil compares every row, of every kind, with psutil's.
func TestPsutil(t *testing.T) {
	python := testenv.Psutil(t)
	if os.Geteuid() == 0 {
		unshareNet(t) // nobody else's sockets come and go there
	}
	var w world
	w.inet(t)
	w.unix(t, unixNames(t))
	listener := listen(t, unix.AF_INET, [16]byte{})
	ufd := socket(t, unix.AF_UNIX, unix.SOCK_STREAM)
	must(t, unix.Bind(ufd, &unix.SockaddrUnix{Name: t.TempDir() + "/s"}))
	kid := startChild(t, "hold", dup(t, listener), dup(t, ufd), dup(t, ufd))

	srcs := sources(t)
	for _, kind := range conn.KindNames() {
		for _, pid := range []int32{0, int32(os.Getpid()), kid.pid} {
			// As an ordinary user the test shares its namespace: psutil and the sources may
			// look at different moments.
			var diff string
			for range 10 {
				out, err := exec.Command(python, "-c", psutilScript, kind, strconv.Itoa(int(pid))).Output()
				must(t, err)
				want := slices.Sorted(strings.Lines(string(out)))
				diff = ""
				for _, src := range srcs {
					k, err := conn.ParseKind(kind)
					must(t, err)
					var got []string
					for _, c := range snapshot(t, src, Query{Kind: k, PID: pid}).Conns {
						got = append(got, formatRow(c))
					}
					slices.Sort(got)
					diff += diffRows(src.Name(), got, want)
				}
				if diff == "" {
					break
				}
			}
			if diff != "" {
				t.Errorf("%s of process %d:\n%s", kind, pid, diff)
			}
		}
	}
}

func diffRows(name string, got, want []string) (diff string) {
	for _, r := range got {
		if !slices.Contains(want, r) {
			diff += name + " only: " + r
		}
	}
	for _, r := range want {
		if !slices.Contains(got, r) {
			diff += "not in " + name + ": " + r
		}
	}
	if diff == "" && len(got) != len(want) {
		diff = fmt.Sprintf("%s has %d rows, psutil %d\n", name, len(got), len(want))
	}
	return diff
}
