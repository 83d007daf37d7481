package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
)

// confineEnv has a confinement for the test binary, which puts itself into it
// before it becomes conntrace.
const confineEnv = "CONNTRACE_TEST_CONFINE"

// A confinement is what a command is run in. It is made of real namespaces, mounts,
// capabilities and seccomp filters.
type confinement struct {
	User       bool     // run as nobody, rather than root
	Caps       []uint   // capabilities: all that nobody has; those that root lacks
	Seccomp    uint16   // what bpf(2) and perf_event_open(2) fail with; 0: nothing
	Tmpfs      []string // folders that are covered by an empty file system
	Tracefs    bool     // tracefs is mounted where it belongs, for everybody
	ReadOnly   bool     // a fresh procfs is mounted, read-only
	Namespaces uintptr  // CLONE_NEW... flags besides CLONE_NEWNS
}

// confined makes cmd run in c.
func confined(t *testing.T, c confinement, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	testenv.Root(t)
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(cmd.Env, confineEnv+"="+string(b))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | c.Namespaces}
	if c.Namespaces&unix.CLONE_NEWUSER != 0 {
		root := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = root, root
	}
	return cmd
}

// init enters the confinement that the environment tells of, and starts the test
// binary again in it. Without one it does nothing.
func init() {
	text, ok := os.LookupEnv(confineEnv)
	if !ok {
		return
	}
	var c confinement
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(err)
	}
	os.Unsetenv(confineEnv)
	if err := c.enter(); err != nil {
		fmt.Fprintln(os.Stderr, "confine:", err)
		os.Exit(100)
	}
}

// enter is called in the main thread: what belongs to a thread becomes the
// process's when that calls execve(2).
func (c *confinement) enter() error {
	self, err := os.Open("/proc/self/exe") // whose folder may be closed to nobody
	if err != nil {
		return err
	}
	mount := func(what, where, typ string, flags uintptr) error {
		if err := unix.Mount(what, where, typ, flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", where, err)
		}
		return nil
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE); err != nil {
		return err
	}
	if c.ReadOnly {
		if err := mount("proc", "/proc", "proc", unix.MS_RDONLY); err != nil {
			return err
		}
	}
	for _, dir := range c.Tmpfs {
		if err := mount("tmpfs", dir, "tmpfs", 0); err != nil {
			return err
		}
	}
	if c.Tracefs {
		if err := mount("tracefs", "/sys/kernel/tracing", "tracefs", 0); err != nil && !errors.Is(err, unix.EBUSY) {
			return err // but for EBUSY: it is mounted there
		}
	}
	if err := c.limit(); err != nil {
		return err
	}
	if c.Seccomp != 0 {
		if err := refuseBPF(c.Seccomp); err != nil {
			return err
		}
	}
	argv := append([]string{"conntrace"}, os.Args[1:]...)
	return fmt.Errorf("execveat: %w", execveat(int(self.Fd()), argv, os.Environ()))
}

// limit takes capabilities away, and root from nobody.
func (c *confinement) limit() error {
	if !c.User { // execve(2) gives root the bounding set
		for _, capability := range c.Caps {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0); err != nil {
				return fmt.Errorf("PR_CAPBSET_DROP: %w", err)
			}
		}
		return nil
	}
	const nobody = 65534
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_KEEPCAPS: %w", err)
	}
	for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
		if _, _, errno := unix.RawSyscall(call, nobody, nobody, nobody); errno != 0 {
			return fmt.Errorf("setresuid: %w", errno)
		}
	}
	var data [2]unix.CapUserData
	for _, capability := range c.Caps {
		d := &data[capability/32]
		d.Effective |= 1 << (capability % 32)
		d.Permitted, d.Inheritable = d.Effective, d.Effective
	}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	for _, capability := range c.Caps {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(capability), 0, 0); err != nil {
			return fmt.Errorf("PR_CAP_AMBIENT_RAISE: %w", err)
		}
	}
	return nil
}

// refuseBPF has bpf(2) and perf_event_open(2) fail with errno, as the seccomp filter
// of a container does.
func refuseBPF(errno uint16) error {
	jump := func(call uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: skip, K: call}
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		jump(unix.SYS_BPF, 2),
		jump(unix.SYS_PERF_EVENT_OPEN, 1),
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return fmt.Errorf("PR_SET_SECCOMP: %w", err)
	}
	return nil
}

func execveat(fd int, argv, env []string) error {
	argvp, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	envp, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	empty := new(byte)
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&argvp[0])), uintptr(unsafe.Pointer(&envp[0])), unix.AT_EMPTY_PATH, 0)
	return errno
}
