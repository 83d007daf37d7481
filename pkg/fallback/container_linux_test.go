package fallback

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
)

// inContainer is what a helper in a container sees of the host.
type inContainer struct {
	Source   string
	Refused  string // why it was refused
	Host     []int  // owners of the host's listener: in a snapshot, and by a seed event
	Own      bool   // whether a listener of the container's is among the rows
	Counters bool
}

// newSystem is how a process starts that is in a system of its own.
var newSystem = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// host is the helper that is process 1 of the host in TestFromContainer: it listens,
// and starts the container. The real host's process 1 cannot be looked into everywhere.
func host(dir string) {
	check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	check(unix.Mount("proc", "/proc", "proc", 0, ""))
	port := listenAnywhere()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=container %d %s", helperEnv, port, dir))
	cmd.SysProcAttr = newSystem
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	check(cmd.Run())
}

// listenAnywhere listens on a port of the kernel's choice.
func listenAnywhere() (port uint16) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	check(unix.Listen(fd, 1))
	sa, err := unix.Getsockname(fd)
	check(err)
	return uint16(sa.(*unix.SockaddrInet4).Port)
}

// container is the helper in the container: it has the host's procfs at dir beside one
// of its own, and tells what it sees by it.
func container(dir string, port uint16) {
	check(unix.Mount("/proc", dir, "", unix.MS_BIND|unix.MS_REC, ""))
	check(unix.Mount("proc", "/proc", "proc", 0, ""))
	ownPort := listenAnywhere()

	var all []inContainer
	for name, open := range map[string]func(string) (Source, error){"netlink": Netlink, "procfs": Procfs} {
		seen := inContainer{Source: name}
		src, err := open(dir)
		if err != nil {
			seen.Refused = err.Error()
			all = append(all, seen)
			continue
		}
		snap, err := src.Snapshot(context.Background(), Query{Kind: conn.KindTCP})
		check(err)
		rows := snap.Conns
		p := NewPoller(src, Query{Kind: conn.KindTCP})
		seeds, err := p.Poll(context.Background())
		check(err)
		for i := range seeds {
			rows = append(rows, seeds[i].Conn)
		}
		for i := range rows {
			switch rows[i].Laddr.Port() {
			case port:
				seen.Host = append(seen.Host, int(rows[i].PID))
			case ownPort:
				seen.Own = true
			}
		}
		_, seen.Counters = p.observer.count()
		check(p.Close())
		all = append(all, seen)
	}
	check(json.NewEncoder(os.Stdout).Encode(all))
}

// TestFromContainer: with the host's procfs a process in a container sees the host's
// sockets and processes by either source, and none of its own.
func TestFromContainer(t *testing.T) {
	testenv.Root(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=host "+t.TempDir())
	cmd.SysProcAttr = newSystem
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	var all []inContainer
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, seen := range all {
		if seen.Refused != "" || !slices.Equal(seen.Host, []int{1, 1}) || seen.Own || !seen.Counters {
			t.Errorf("want the host's listener, of process 1, twice: %+v", seen)
		}
	}
	if len(all) != 2 {
		t.Errorf("%d sources", len(all))
	}
}
