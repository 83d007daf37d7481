// Churn opens and closes TCP connections over loopback as fast as it can.
//
//	churn DURATION PAIRS LOAD
//
// Each of PAIRS client processes connects, again and again, to a server process
// of its own. LOAD is what they do with a connection:
//
//	request   a request and a reply of 64 bytes, then the client resets it
//	fin       the same, then the client closes it in the ordinary way
//	bare      nothing is sent and neither waits for the other; the client resets it
//
// What was done is printed as JSON. Go's scheduler has no part in it: each process
// is one thread that makes raw system calls.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/scripts/bench/turns"
)

const (
	maxPairs = 64
	maxAhead = 512 // connections that a client may be ahead of its server
	backlog  = 4096
)

// A pair is what a client and its server share. Every field has one writer, and
// every writer a cache line.
type pair struct {
	// parent
	started  atomic.Uint32 // the client may begin
	duration int64         // in nanoseconds
	_        [112]byte

	// client
	connects atomic.Uint64
	failures atomic.Uint64
	elapsed  atomic.Int64  // in nanoseconds
	finished atomic.Uint32 // it connects no more
	_        [100]byte

	// server
	ready   atomic.Uint32 // it listens
	port    uint32
	accepts atomic.Uint64
	_       [112]byte
}

func main() {
	runtime.LockOSThread() // PR_SET_PDEATHSIG means the thread that started a process
	debug.SetGCPercent(-1)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "churn:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: churn DURATION PAIRS LOAD")
	}
	if role := args[0]; role == "client" || role == "server" {
		return runChild(role, args[1], args[2])
	}
	duration, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[1])
	if err != nil || n < 1 || n > maxPairs {
		return fmt.Errorf("PAIRS must be from 1 to %d", maxPairs)
	}
	if !slices.Contains(turns.Loads, args[2]) {
		return fmt.Errorf("LOAD must be one of %v", turns.Loads)
	}
	result, err := churn(duration, n, args[2])
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// churn runs n pairs of processes.
func churn(duration time.Duration, n int, load string) (result turns.Load, err error) {
	fd, err := unix.MemfdCreate("churn", unix.MFD_CLOEXEC)
	if err != nil {
		return result, fmt.Errorf("memfd_create: %w", err)
	}
	shared := os.NewFile(uintptr(fd), "churn")
	defer shared.Close()
	if err := shared.Truncate(int64(unsafe.Sizeof([maxPairs]pair{}))); err != nil {
		return result, err
	}
	pairs, err := mapPairs(fd)
	if err != nil {
		return result, err
	}

	self, err := os.Executable() // by its name, so that observers see that
	if err != nil {
		return result, err
	}
	var children []*exec.Cmd
	start := func(role string, i int) error {
		cmd := exec.Command(self, role, strconv.Itoa(i), load)
		cmd.ExtraFiles = []*os.File{shared}
		cmd.Stderr = os.Stderr
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		children = append(children, cmd)
		return cmd.Start()
	}
	for i := range n {
		pairs[i].duration = int64(duration)
		if err := start("server", i); err != nil {
			return result, err
		}
		if err := await(&pairs[i].ready); err != nil {
			return result, fmt.Errorf("server %d: %w", i, err)
		}
		if err := start("client", i); err != nil {
			return result, err
		}
	}
	time.Sleep(50 * time.Millisecond) // the clients come up
	for i := range n {
		pairs[i].started.Store(1)
	}
	for _, c := range children {
		if err := c.Wait(); err != nil {
			return result, fmt.Errorf("%s %s: %w", c.Args[1], c.Args[2], err)
		}
	}

	for i := range n {
		p := &pairs[i]
		result.Connects += p.connects.Load()
		result.Failures += p.failures.Load()
		result.Accepts += p.accepts.Load()
		result.Seconds = max(result.Seconds, time.Duration(p.elapsed.Load()).Seconds())
	}
	return result, nil
}

func runChild(role, number, load string) error {
	i, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	pairs, err := mapPairs(3)
	if err != nil {
		return err
	}
	// Both ends of a connection are on one CPU, the same all the time. Where the
	// scheduler would put them is a matter of chance, and makes a factor of two.
	if err := pin(i); err != nil {
		return err
	}
	p, addr := &pairs[i], turns.LoadAddress(i)
	if role == "server" {
		return p.serve(addr, load)
	}
	defer p.finished.Store(1)
	return p.connect(addr, load)
}

// pin binds this process to one of the CPUs that it may use: the nth, cyclically.
func pin(n int) error {
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	n %= allowed.Count()
	for cpu := 0; ; cpu++ {
		if !allowed.IsSet(cpu) {
			continue
		}
		if n == 0 {
			one.Set(cpu)
			return unix.SchedSetaffinity(0, &one)
		}
		n--
	}
}

// mapPairs maps the shared memory.
func mapPairs(fd int) (*[maxPairs]pair, error) {
	mem, err := unix.Mmap(fd, 0, int(unsafe.Sizeof([maxPairs]pair{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return (*[maxPairs]pair)(unsafe.Pointer(&mem[0])), nil
}

func await(flag *atomic.Uint32) error {
	const limit = 10 * time.Second
	for end := time.Now().Add(limit); flag.Load() == 0; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			return fmt.Errorf("not ready after %v", limit)
		}
	}
	return nil
}

// payload is what is sent, and where it is received.
var payload [64]byte

func read(fd uintptr) (n int) {
	r, _, _ := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&payload)), unsafe.Sizeof(payload))
	return int(r)
}

func write(fd uintptr) {
	unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&payload)), unsafe.Sizeof(payload))
}

// serve accepts, replies and closes until the client has ended and all is accepted.
func (p *pair) serve(addr [4]byte, load string) error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(l)
	// So that it looks now and then whether the client has ended.
	if err := unix.SetsockoptTimeval(l, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}); err != nil {
		return fmt.Errorf("SO_RCVTIMEO: %w", err)
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: addr}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(l, backlog); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	name, err := unix.Getsockname(l)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	p.port = uint32(name.(*unix.SockaddrInet4).Port)
	p.ready.Store(1)

	for {
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			if load != "bare" {
				for read(fd) > 0 { // until the client has closed
					write(fd)
				}
			}
			unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
			p.accepts.Add(1)
		case unix.EAGAIN:
			if p.finished.Load() != 0 {
				return nil
			}
		case unix.EINTR:
		default:
			return fmt.Errorf("accept4: %w", errno)
		}
	}
}

// connect connects, asks and closes until its time is over.
func (p *pair) connect(addr [4]byte, load string) error {
	to := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: addr}
	port := (*[2]byte)(unsafe.Pointer(&to.Port))
	port[0], port[1] = byte(p.port>>8), byte(p.port)
	linger := unix.Linger{Onoff: 1}

	if err := await(&p.started); err != nil {
		return err
	}
	begin := time.Now()
	for n := uint64(0); ; n++ {
		if n%16 == 0 && time.Since(begin) >= time.Duration(p.duration) {
			break
		}
		for p.connects.Load()-p.accepts.Load() > maxAhead {
			unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
		fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if errno != 0 {
			return fmt.Errorf("socket: %w", errno)
		}
		if load != "fin" {
			unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_LINGER,
				uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
		}
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to))
		if errno == 0 {
			p.connects.Add(1)
			if load != "bare" {
				write(fd)
				read(fd)
			}
		} else if p.failures.Add(1) > 1000 {
			return fmt.Errorf("connect: %w", errno)
		}
		unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	}
	p.elapsed.Store(int64(time.Since(begin)))
	return nil
}
