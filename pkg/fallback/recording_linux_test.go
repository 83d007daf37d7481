package fallback

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A recording of this process has its sockets, the same by sock_diag and by procfs, and
// nothing in any file of those that others hold.
func TestRecord(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	name := "own\n\xff " + strconv.Itoa(os.Getpid())
	fd := socket(t, unix.AF_UNIX, unix.SOCK_DGRAM)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + name}))
	other := startChild(t, "listen")

	dir := recordSelf(t)
	r, err := ReadRecording(dir)
	must(t, err)
	bySource, err := r.decode()
	must(t, err)
	for _, source := range []string{"netlink", "procfs"} {
		s := Snapshot{Conns: bySource[source]}
		if c := oneWith(t, s, conn.AddrFrom(l.Addr().(*net.TCPAddr).AddrPort()), conn.StatusListen); c.PID != int32(os.Getpid()) || c.FD < 0 {
			t.Errorf("%s: %+v", source, c)
		}
		if rows := rowsWith(s, conn.AddrUnix("@"+name)); len(rows) != 1 || rows[0].FD != int32(fd) {
			t.Errorf("%s: unix rows %+v", source, rows)
		}
		for _, c := range s.Conns {
			if c.PID != int32(os.Getpid()) {
				t.Errorf("%s: another's socket: %+v", source, c)
			}
		}
	}
	rows, err := r.Rows()
	must(t, err)
	if recorded, err := os.ReadFile(filepath.Join(dir, rowsFile)); err != nil || !bytes.Equal(rows, recorded) {
		t.Errorf("%v: decoded\n%s\nrecorded\n%s", err, rows, recorded)
	}

	_, text, err := net.SplitHostPort(other.output)
	must(t, err)
	number, err := strconv.Atoi(text)
	must(t, err)
	for name, raw := range r.tables {
		if bytes.Contains(raw, []byte(":"+hexPort(number)+" ")) || bytes.Contains(raw, []byte{byte(number >> 8), byte(number), 0, 0, 127, 0, 0, 1}) {
			t.Errorf("%s has the socket of another process", name)
		}
	}
}

// hexPort returns a port as /proc/net has it.
func hexPort(n int) string {
	const digits = "0123456789ABCDEF"
	return string([]byte{digits[n>>12&15], digits[n>>8&15], digits[n>>4&15], digits[n&15]})
}
