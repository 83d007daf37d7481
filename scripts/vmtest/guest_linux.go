package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The host leaves these files in the initramfs.
const (
	commandsDir = "/vmtest/commands" // a file a command: its folder, program and arguments, NUL-separated
	modulesDir  = "/vmtest/modules"  // uncompressed, named in the order of loading
	environment = "/vmtest/env"      // NUL-separated
)

// exitGuest is the status of a run that the guest itself spoilt.
const exitGuest = 125

var mounts = []struct{ what, where string }{
	{"devtmpfs", "/dev"},
	{"devpts", "/dev/pts"},
	{"tmpfs", "/dev/shm"},
	{"proc", "/proc"},
	{"sysfs", "/sys"},
	{"bpf", "/sys/fs/bpf"},
	{"cgroup2", "/sys/fs/cgroup"},
	{"debugfs", "/sys/kernel/debug"},
	{"tracefs", "/sys/kernel/tracing"},
	{"securityfs", "/sys/kernel/security"},
	{"tmpfs", "/tmp"},
	{"tmpfs", "/run"},
}

// guest is what process 1 does. It must not return: the kernel would panic.
func guest() {
	g := guestResult{status: exitGuest}
	defer func() {
		if p := recover(); p != nil {
			complain("init panicked: %v", p)
		}
		g.send()
		unix.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}()
	setUp()
	commands, _ := filepath.Glob(commandsDir + "/*")
	if len(commands) > 0 {
		g.status = 0
	}
	env := append([]string{"PATH=/bin:/sbin", "HOME=/tmp", "TERM=dumb"}, nulSeparated(environment)...)
	for _, path := range commands {
		command := nulSeparated(path)
		start := time.Now()
		output, status := run(command[0], command[1:], env)
		complain("%s: exit status %d after %.1f s", filepath.Base(command[1]), status, time.Since(start).Seconds())
		g.outputs = append(g.outputs, output)
		if status != 0 && g.status == 0 {
			g.status = status
		}
	}
}

// complain writes a line to the console, as the kernel's own messages are.
func complain(format string, args ...any) { fmt.Printf("vmtest: "+format+"\n", args...) }

// setUp makes a system of the bare kernel. What fails is told, and left to the
// tests that need it.
func setUp() {
	try := func(what string, err error) {
		if err != nil {
			complain("%s: %v", what, err)
		}
	}
	for _, m := range mounts {
		try(m.where, os.MkdirAll(m.where, 0o755))
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); !errors.Is(err, unix.EPERM) {
			try("mount "+m.where, err) // lockdown=confidentiality refuses tracefs and debugfs
		}
	}
	setUpConsole()
	try("/tmp", os.Chmod("/tmp", 0o1777))
	try("/dev/fd", os.Symlink("/proc/self/fd", "/dev/fd"))
	try("/bin/true", os.Symlink("/init", "/bin/true"))
	try("/bin/sleep", os.Symlink("/init", "/bin/sleep"))
	try("/etc", os.MkdirAll("/etc", 0o755))
	try("/etc/hosts", os.WriteFile("/etc/hosts", []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644))
	try("/etc/passwd", os.WriteFile("/etc/passwd", []byte("root:x:0:0:root:/tmp:\nnobody:x:65534:65534::/:\n"), 0o644))
	try("/etc/group", os.WriteFile("/etc/group", []byte("root:x:0:\nnogroup:x:65534:\n"), 0o644))
	try("lo", loopbackUp())
	try("limit of files", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 20}))

	modules, _ := filepath.Glob(modulesDir + "/*")
	for _, m := range modules {
		image, err := os.ReadFile(m)
		if err == nil {
			err = unix.InitModule(image, "")
		}
		if !errors.Is(err, unix.EEXIST) {
			try("module "+m, err)
		}
	}
}

// setUpConsole makes the console stdout and stderr, and stdin empty.
func setUpConsole() {
	if null, err := unix.Open("/dev/null", unix.O_RDONLY, 0); err == nil {
		unix.Dup3(null, 0, 0)
	}
	if console, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
		makeRaw(console)
		unix.Dup3(console, 1, 0)
		unix.Dup3(console, 2, 0)
	}
}

// makeRaw has a terminal carry bytes as they are.
func makeRaw(fd int) {
	if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

// run runs argv in dir and returns what it wrote, which goes to the console too.
// As process 1 must, it collects whatever other processes end meanwhile.
func run(dir string, argv, env []string) (output []byte, status int) {
	fail := func(err error) ([]byte, int) {
		complain("%s: %v", argv[0], err)
		return nil, 126
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: dir, Env: env, Files: []uintptr{0, w.Fd(), w.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	w.Close()
	if err != nil {
		return fail(err)
	}
	copied := make(chan []byte, 1)
	go func() {
		var b strings.Builder
		io.Copy(io.MultiWriter(os.Stdout, &b), r)
		copied <- []byte(b.String())
	}()
	status = wait(pid)
	// A process that the command left behind may hold the pipe for ever.
	r.SetReadDeadline(time.Now().Add(2 * time.Second))
	return <-copied, status
}

func wait(pid int) (status int) {
	for {
		var ws unix.WaitStatus
		p, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 126
		case p == pid && ws.Signaled():
			return 128 + int(ws.Signal())
		case p == pid:
			return ws.ExitStatus()
		}
	}
}

func nulSeparated(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// A guestResult is what the host gets.
type guestResult struct {
	outputs [][]byte // of each command
	status  int      // of the first command that failed
}

// send writes the result as a tar archive to the serial port that the kernel's
// command line names. The status comes last: that it is there says that all is.
func (g *guestResult) send() {
	_, port, _ := strings.Cut(string(mustRead("/proc/cmdline")), "vmtest.result=")
	port, _, _ = strings.Cut(strings.TrimSpace(port), " ")
	f, err := os.OpenFile(port, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		complain("result: %v", err)
		return
	}
	defer f.Close()
	makeRaw(int(f.Fd()))
	buffered := bufio.NewWriter(f)
	archive := tar.NewWriter(buffered)
	put := func(name string, data []byte) {
		archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Now()})
		archive.Write(data)
	}
	for i, output := range g.outputs {
		put(strconv.Itoa(i+1)+".txt", output)
	}
	messages := make([]byte, 1<<20)
	const readAll = 3 // SYSLOG_ACTION_READ_ALL, syslog(2)
	if n, err := unix.Klogctl(readAll, messages); err == nil {
		put("dmesg.txt", messages[:n])
	}
	put("status", []byte(strconv.Itoa(g.status)+"\n"))
	if err := errors.Join(archive.Close(), buffered.Flush()); err != nil {
		complain("result: %v", err)
	}
	unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) // tcdrain(3)
}

func mustRead(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	return b
}
