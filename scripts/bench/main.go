// Bench is the program behind scripts/bench.sh, which says what it measures. It
// runs in network and mount namespaces of its own, beside the programs that it needs.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	runtime.LockOSThread() // PR_SET_PDEATHSIG means the thread that started a process
}

func main() {
	unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		killAll()
		os.Exit(130)
	}()
	err := run(os.Args[1:])
	killAll()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("run scripts/bench.sh")
	}
	if err := setUpNetwork(); err != nil {
		return err
	}
	// What is printed to files goes to memory, lest a disk be measured too.
	out := program("out")
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", out, "tmpfs", 0, "mode=700"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	switch command, args := args[0], args[1:]; command {
	case "snapshot":
		var sizes []int
		for _, arg := range args {
			n, err := strconv.Atoi(arg)
			if err != nil {
				return err
			}
			sizes = append(sizes, n)
		}
		return benchSnapshot(sizes)
	case "poll":
		if len(args) != 2 {
			return errors.New("poll: need sockets and seconds")
		}
		sockets, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		seconds, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return benchPoll(sockets, time.Duration(seconds)*time.Second)
	case "stream", "tiers":
		if len(args) != 2 {
			return fmt.Errorf("%s: need seconds and load", command)
		}
		seconds, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		bench := benchStream
		if command == "tiers" {
			bench = benchTiers
		}
		return bench(time.Duration(seconds)*time.Second, args[1])
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// program returns the path of a file beside this program.
func program(name string) string {
	self, err := os.Executable()
	if err != nil {
		panic(err) // there is no /proc
	}
	return filepath.Join(filepath.Dir(self), name)
}

// wanted reports whether what has this name is to be measured.
func wanted(name string) bool { return strings.Contains(name, os.Getenv("BENCH_ONLY")) }

// setUpNetwork brings up the loopback device of a new network namespace.
func setUpNetwork() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("1024 65535"), 0)
}

// describe returns where this runs, as items of a Markdown list.
func describe() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("- %s, Linux %s %s, %d CPUs (%s), %s of memory, load average %s before\n- conntrace at %s, %s\n",
		time.Now().UTC().Format("2006-01-02 15:04 UTC"), unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Machine[:]),
		runtime.NumCPU(), lineOf("/proc/cpuinfo", "model name"), memory(), strings.Fields(string(load))[0],
		os.Getenv("BENCH_COMMIT"), runtime.Version()), nil
}

// lineOf returns the value in the first line "key: value" of a file.
func lineOf(path, key string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func memory() string {
	kb, _, _ := strings.Cut(lineOf("/proc/meminfo", "MemTotal"), " ")
	n, err := strconv.Atoi(kb)
	if err != nil {
		return "unknown size"
	}
	return fmt.Sprintf("%d GiB", (n+1<<19)>>20)
}

// firstLineWith returns the first line of what a command prints that has the text.
func firstLineWith(text string, command ...string) string {
	output, _ := exec.Command(command[0], command[1:]...).CombinedOutput() // some fail, and print it all the same
	for line := range bytes.Lines(output) {
		if bytes.Contains(line, []byte(text)) {
			return string(bytes.TrimSpace(line))
		}
	}
	return "version unknown"
}
