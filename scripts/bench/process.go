package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/conntrace/conntrace/scripts/bench/turns"
)

// children are the processes that run.
var children struct {
	sync.Mutex
	all map[*child]struct{}
}

// killAll ends every process that was started.
func killAll() {
	children.Lock()
	defer children.Unlock()
	for c := range children.all {
		c.cmd.Process.Kill()
	}
}

// A child is a process that this one started, and that ends with it.
type child struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer // good once it has ended
	ended  chan struct{}
	err    error // of Wait, once it has ended
}

// start starts a process.
func start(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, ended: make(chan struct{})}
	cmd.Stderr = &c.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	children.Lock()
	defer children.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if children.all == nil {
		children.all = make(map[*child]struct{})
	}
	children.all[c] = struct{}{}
	go func() {
		c.err = cmd.Wait()
		children.Lock()
		delete(children.all, c)
		children.Unlock()
		close(c.ended)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// running reports whether the process has not ended yet.
func (c *child) running() bool {
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

// interrupt asks the process to end and waits until it has.
func (c *child) interrupt() error {
	c.cmd.Process.Signal(os.Interrupt)
	return c.wait(10 * time.Second)
}

// wait waits for the end of the process.
func (c *child) wait(limit time.Duration) error {
	select {
	case <-c.ended:
		return nil
	case <-time.After(limit):
		c.cmd.Process.Kill()
		<-c.ended
		return fmt.Errorf("%s: had to be killed after %v", filepath.Base(c.cmd.Path), limit)
	}
}

// complaint is what a process that failed had to say, in a line.
func (c *child) complaint() string {
	text := strings.ReplaceAll(strings.TrimSpace(c.stderr.String()), "\n", "; ")
	if c.err != nil {
		text = strings.TrimPrefix(text+"; "+c.err.Error(), "; ")
	}
	return text
}

// A server is a process that makes a call whenever it is told to (turns.Serve).
type server struct {
	*child
	in  io.WriteCloser
	out *bufio.Reader
}

func startServer(cmd *exec.Cmd) (*server, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not StdoutPipe, which Wait closes: what was said last is still to be read.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd.Stdout = w
	c, err := start(cmd)
	if err != nil {
		r.Close()
		return nil, err
	}
	return &server{c, in, bufio.NewReader(r)}, nil
}

// call has the call made once.
func (s *server) call() (c turns.Call, err error) {
	if _, err := io.WriteString(s.in, "\n"); err != nil {
		s.wait(time.Second)
		return c, errors.New(s.complaint())
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		s.wait(time.Second)
		return c, errors.New(s.complaint())
	}
	if err := json.Unmarshal(line, &c); err != nil {
		return c, err
	}
	if c.Error != "" {
		return c, errors.New(c.Error)
	}
	return c, nil
}

func (s *server) stop() {
	s.in.Close()
	s.wait(10 * time.Second)
}

// holdSockets opens n TCP sockets, spread over processes that hold at most 10,000
// each. The caller stops them.
func holdSockets(n int) ([]*server, error) {
	const most, least = 10_000, 4
	processes := max(least, (n+most-1)/most)
	var all []*server
	left := n / 2
	for i := range processes {
		pairs := left / (processes - i)
		left -= pairs
		if pairs == 0 {
			continue
		}
		addr := fmt.Sprintf("127.1.%d.%d", i/250, i%250+1)
		s, err := startServer(exec.Command(program("sockets"), strconv.Itoa(2*pairs), addr))
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	for _, s := range all {
		if _, err := s.out.ReadString('\n'); err != nil {
			s.wait(time.Second)
			return all, errors.New(s.complaint())
		}
	}
	return all, nil
}

// release ends the processes and waits until their sockets are gone.
func release(holders []*server) {
	for _, h := range holders {
		h.in.Close()
	}
	for _, h := range holders {
		h.wait(30 * time.Second)
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if strings.HasPrefix(lineOf("/proc/self/net/sockstat", "TCP"), "inuse 0 orphan 0 tw 0 ") {
			return
		}
	}
}

// cpuTime returns the user and system time of a process, all threads and those that
// have ended included, to the clock tick of 10 ms.
func cpuTime(pid int) (user, system time.Duration, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, 0, errors.New("short /proc/PID/stat")
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100
	u, err := strconv.ParseUint(fields[11], 10, 63)
	if err != nil {
		return 0, 0, err
	}
	s, err := strconv.ParseUint(fields[12], 10, 63)
	return time.Duration(u) * tick, time.Duration(s) * tick, err
}

// statusBytes returns a field of /proc/PID/status, such as VmHWM, in bytes.
func statusBytes(pid int, field string) int {
	kb, _, _ := strings.Cut(lineOf(fmt.Sprintf("/proc/%d/status", pid), field), " ")
	n, _ := strconv.Atoi(kb)
	return n << 10
}

// switches returns how often the threads of a process gave up the CPU to wait.
func switches(pid int) int {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	sum := 0
	for _, t := range threads {
		n, _ := strconv.Atoi(lineOf(t, "voluntary_ctxt_switches"))
		sum += n
	}
	return sum
}

// A programRun is what the kernel counts of a BPF program.
type programRun struct {
	count uint64
	ns    uint64 // while statistics are enabled
}

// programRuns returns the account of the BPF programs that a process holds, by ID.
func programRuns(pid int) map[uint32]programRun {
	runs := make(map[uint32]programRun)
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	for _, f := range files {
		id, err := strconv.ParseUint(lineOf(f, "prog_id"), 10, 32)
		count := lineOf(f, "run_cnt")
		if err != nil || count == "" {
			continue // no program, or a link to one
		}
		var r programRun
		r.count, _ = strconv.ParseUint(count, 10, 64)
		r.ns, _ = strconv.ParseUint(lineOf(f, "run_time_ns"), 10, 64)
		runs[uint32(id)] = r
	}
	return runs
}
