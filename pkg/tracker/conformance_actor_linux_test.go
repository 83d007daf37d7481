package tracker_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

func init() {
	helpers["actor"] = helperActor
	helpers["leaderless"] = helperLeaderless
	if os.Getenv(helperEnv) == "leaderless" {
		runtime.LockOSThread() // keeps the main goroutine on the thread-group leader
	}
}

// An actor is a process that makes the system calls on sockets that it is told to,
// so that a test has sockets in processes of its choice.
type actor struct {
	t       *testing.T
	process *process // nil: the test itself, on the calling thread
	open    map[int]bool
}

// self returns the test's own process as an actor. What it opens is closed with
// the test.
func (b *testbed) self() *actor {
	a := &actor{t: b.t, open: make(map[int]bool)}
	b.t.Cleanup(func() {
		for fd := range a.open {
			unix.Close(fd)
		}
	})
	return a
}

// actor starts an actor that inherits the files as descriptors 3 and up.
func (b *testbed) actor(as user, files ...*os.File) *actor {
	b.t.Helper()
	return &actor{t: b.t, process: startAs(b.t, "actor", as, files...)}
}

// fork starts an actor that inherits descriptors of a, as 3 and up.
func (b *testbed) fork(a *actor, as user, fds ...int) *actor {
	b.t.Helper()
	var files []*os.File
	for _, fd := range fds {
		f := os.NewFile(uintptr(steal(b.t, a.pid(), int32(fd))), "socket")
		defer f.Close()
		files = append(files, f)
	}
	return b.actor(as, files...)
}

func (a *actor) pid() int32 {
	if a.process == nil {
		return int32(os.Getpid())
	}
	return a.process.pid()
}

// try makes a call, one of calls, and returns the descriptors that it gives.
func (a *actor) try(op string, args ...any) ([]int, error) {
	a.t.Helper()
	words := strings.Fields(fmt.Sprintln(args...))
	if a.process != nil {
		answer := strings.Fields(a.process.ask(op, strings.Join(words, " ")))
		if answer[0] != "ok" {
			return nil, errors.New(strings.Join(answer, " "))
		}
		return numbers(answer[1:])
	}
	if c, ok := calls[op]; !ok || c.args != len(words) {
		a.t.Fatal("no such call:", op, words)
	}
	fds, err := calls[op].call(words)
	for _, fd := range fds {
		a.open[fd] = true
	}
	if err == nil && op == "close" {
		n, _ := strconv.Atoi(words[0])
		delete(a.open, n)
	}
	return fds, err
}

// do makes a call that must succeed, and returns the first descriptor that it gives.
func (a *actor) do(op string, args ...any) int {
	a.t.Helper()
	fds, err := a.try(op, args...)
	if err != nil {
		a.t.Fatalf("%s %v: %v", op, args, err)
	}
	if len(fds) == 0 {
		return 0
	}
	return fds[0]
}

func (a *actor) holder(fd int) conn.Holder { return conn.Holder{PID: a.pid(), FD: int32(fd)} }

func numbers(words []string) (ns []int, err error) {
	for _, w := range words {
		n, err := strconv.Atoi(w)
		if err != nil {
			return nil, err
		}
		ns = append(ns, n)
	}
	return ns, nil
}

// helperActor answers each call with "ok" and descriptors, or with an error. A
// call that starts with "own:" is made by a thread that has a descriptor table of
// its own.
func helperActor(r *bufio.Scanner, w io.Writer) error {
	if os.Getenv(execedEnv) != "" {
		fmt.Fprintln(w, "ok") // to the call of what this process was before
	}
	var own chan func()
	for r.Scan() {
		op, inOwn := strings.CutPrefix(r.Text(), "own:")
		c, ok := calls[op]
		if !ok {
			return fmt.Errorf("no such call: %q", op)
		}
		args := make([]string, c.args)
		for i := range args {
			r.Scan()
			args[i] = r.Text()
		}
		var fds []int
		var err error
		if inOwn {
			if own == nil {
				own = ownTable()
			}
			done := make(chan struct{})
			own <- func() {
				fds, err = c.call(args)
				close(done)
			}
			<-done
		} else {
			fds, err = c.call(args)
		}
		if err != nil {
			fmt.Fprintln(w, err)
		} else {
			fmt.Fprintln(w, "ok", strings.Trim(fmt.Sprint(fds), "[]"))
		}
	}
	return r.Err()
}

// execedEnv is set if the actor has executed itself.
const execedEnv = "CONNTRACE_TEST_EXECED"

// reexec makes the actor execute itself and keep its sockets. It returns only if it
// fails.
func reexec() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		var st unix.Stat_t
		if err == nil && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
				return err
			}
		}
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), execedEnv+"=1"))
}

// ownTable returns where to send functions for a thread, not the leader, that has
// a descriptor table of its own.
func ownTable() chan func() {
	todo := make(chan func())
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			other := ownTable() // which cannot be on the leader, as this is
			for f := range todo {
				other <- f
			}
		}
		if err := unix.Unshare(unix.CLONE_FILES); err != nil {
			panic(err)
		}
		for f := range todo {
			f()
		}
	}()
	return todo
}

// helperLeaderless is an actor whose thread-group leader ends when it is told to.
func helperLeaderless(r *bufio.Scanner, w io.Writer) error {
	end := make(chan struct{})
	calls["end-leader"] = call{0, func([]string) ([]int, error) {
		close(end)
		return nil, nil
	}}
	go func() {
		if err := helperActor(r, w); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(0)
	}()
	<-end
	unix.Syscall(unix.SYS_EXIT, 0, 0, 0) // of this thread alone
	return errors.New("the leader lives on")
}
