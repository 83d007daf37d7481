package main

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/internal/testenv"
)

// service are the capabilities of docs/conntrace.service.
var service = []uint{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}

// init adds what older kernels need: to lift the limit of locked memory, and to attach
// the programs that see cookies there.
func init() {
	if sysinfo.Read().Before(5, 12) {
		service = append(service, unix.CAP_SYS_RESOURCE, unix.CAP_NET_ADMIN)
	}
}

// serviceWithout returns service without one of them.
func serviceWithout(lost uint) []uint {
	return slices.DeleteFunc(slices.Clone(service), func(c uint) bool { return c == lost })
}

// TestRefusals: whatever the kernel refuses, doctor names the cause and the cure,
// and watch and list give what can be had.
func TestRefusals(t *testing.T) {
	testenv.Root(t)
	const (
		ebpf    = "ebpf"
		netlink = "netlink"
		either  = "" // ebpf, or netlink with the reason: it depends on what hooks the kernel has
	)
	noTracefs := []string{"/sys/kernel/tracing", "/sys/kernel/debug"}
	for _, tt := range []struct {
		name string
		confinement
		source string
		owner  bool     // list knows whose root's sockets are
		reason []string // what doctor says if source is not ebpf
	}{
		{
			"service", confinement{User: true, Tracefs: true, Caps: service},
			ebpf, true, nil,
		},
		{
			"without CAP_BPF", confinement{User: true, Tracefs: true, Caps: serviceWithout(unix.CAP_BPF)},
			netlink, true, []string{"ebpf: operation not permitted", "run as root, or with CAP_BPF\n"},
		},
		{
			"without CAP_PERFMON", confinement{User: true, Tracefs: true, Caps: serviceWithout(unix.CAP_PERFMON)},
			netlink, true, []string{"ebpf: operation not permitted", "run as root, or with CAP_PERFMON\n"},
		},
		{
			"with little memory to lock", confinement{User: true, Tracefs: true, Caps: serviceWithout(unix.CAP_SYS_RESOURCE)},
			either, true, []string{"lift RLIMIT_MEMLOCK", "or run with CAP_SYS_RESOURCE\n"},
		},
		{
			"without CAP_SYS_PTRACE", confinement{User: true, Tracefs: true, Caps: serviceWithout(unix.CAP_SYS_PTRACE)},
			ebpf, false, nil,
		},
		{
			"without CAP_DAC_READ_SEARCH", confinement{User: true, Tracefs: true, Caps: serviceWithout(unix.CAP_DAC_READ_SEARCH)},
			either, false, []string{"tracefs is closed to this user", "with CAP_DAC_READ_SEARCH\n"},
		},
		{
			"service without tracefs", confinement{User: true, Tmpfs: noTracefs, Caps: service},
			either, true, []string{"tracefs is not mounted", "mount -t tracefs tracefs /sys/kernel/tracing"},
		},
		{
			"root without tracefs", confinement{Tmpfs: noTracefs},
			ebpf, true, nil,
		},
		{
			"root without CAP_BPF", confinement{Caps: []uint{unix.CAP_SYS_ADMIN, unix.CAP_BPF}},
			netlink, true, []string{"ebpf: operation not permitted", "run as root, or with CAP_BPF\n"},
		},
		{
			"seccomp EPERM", confinement{Seccomp: uint16(unix.EPERM)},
			netlink, true, []string{"operation not permitted", "a seccomp filter may forbid it: allow bpf(2)"},
		},
		{
			"seccomp ENOSYS", confinement{Seccomp: uint16(unix.ENOSYS)},
			netlink, true, []string{"a seccomp filter may hide it: allow bpf(2)"},
		},
		{
			"no BTF", confinement{Tmpfs: []string{"/sys/kernel/btf"}},
			netlink, true, []string{"the kernel must have BTF (CONFIG_DEBUG_INFO_BTF=y)", "BTF               missing"},
		},
		{
			"user namespace", confinement{Namespaces: unix.CLONE_NEWUSER},
			netlink, false, []string{"ebpf: ", "capabilities in a user namespace do not count for BPF", "user namespace    a container's"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source := doctor(t, tt.confinement, tt.reason)
			if source != tt.source && (tt.source != either || source != ebpf && source != netlink) {
				t.Errorf("source %s, want %s", source, tt.source)
			}
			if testing.Short() {
				return // the programs take long to load in an emulated machine
			}
			seesConnection(t, tt.confinement, source)
			listsSocket(t, tt.confinement, tt.owner)
		})
	}
}

// doctor returns the source that doctor finds in c, and checks what it says if that
// is not ebpf.
func doctor(t *testing.T, c confinement, reason []string) string {
	t.Helper()
	r := finish(t, confined(t, c, command(t, "doctor")))
	_, source, _ := strings.Cut(r.stdout, "Source in use: ")
	source, _, _ = strings.Cut(source, "\n")
	if r.status != exitOK || source == "" {
		t.Fatalf("doctor: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	for _, part := range reason {
		if source != "ebpf" && !strings.Contains(r.stdout, part) {
			t.Errorf("doctor does not say %q:\n%s", part, r.stdout)
		}
	}
	return source
}

// seesConnection checks that watch in c sees a connection that lasts.
func seesConnection(t *testing.T, c confinement, source string) {
	t.Helper()
	l := listen(t, "tcp", "127.0.0.1:0")
	w := &watcher{Cmd: confined(t, c, command(t, "watch", "--format", "json", "--port", inetPort(l), "--poll-interval", "50ms"))}
	w.start(t)
	w.next(t, inetAddr(l.Addr())) // the listener: it has begun
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialed.Close()
	ev := w.next(t, inetAddr(dialed.LocalAddr()))
	if ev.Event != "connect" || *ev.Direction != "outbound" || source == "ebpf" && (ev.PID == nil || *ev.PID != os.Getpid()) {
		t.Errorf("watch: %+v", ev)
	}
	w.Process.Signal(syscall.SIGINT)
	io.Copy(io.Discard, w.out)
	w.Wait()
	if refused := strings.Contains(w.stderr.String(), "ebpf refused: "); refused != (source != "ebpf") {
		t.Errorf("watch with %s says: %s", source, &w.stderr)
	}
}

// listsSocket checks that list in c has a socket of this process, and whether it
// says whose it is.
func listsSocket(t *testing.T, c confinement, owner bool) {
	t.Helper()
	l := listen(t, "tcp", "127.0.0.1:0")
	r := finish(t, confined(t, c, command(t, "list", "--format", "json")))
	var rs []row
	if err := json.Unmarshal([]byte(r.stdout), &rs); err != nil {
		t.Fatalf("list: %v\n%s%s", err, r.stdout, r.stderr)
	}
	found := find(rs, inetAddr(l.Addr()), "null")
	if found == nil {
		t.Fatalf("list lacks the socket:\n%s", r.stdout)
	}
	if known := found.PID != nil; known != owner || known && int(*found.PID) != os.Getpid() {
		t.Errorf("list: pid %v\n%s", found.PID, r.stderr)
	}
	if hidden := strings.Contains(r.stderr, "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"); !owner && !hidden {
		t.Errorf("list says: %s", r.stderr)
	}
}

// TestOldIterators: Linux 5.10 has no iterators that fit. Who asks for them by name is
// told why, and others get the same from sock_diag.
func TestOldIterators(t *testing.T) {
	testenv.Root(t)
	if !sysinfo.Read().Before(5, 11) {
		t.Skip("this kernel has bpf_sock_from_file()")
	}
	r := conntrace(t, "list", "--backend", "ebpf")
	if r.status != exitFailed || !strings.Contains(r.stderr, "this kernel is too old for it") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("list --backend ebpf: %+v", r)
	}
	listsSocket(t, confinement{}, true)
}

// TestLockdown: lockdown=integrity leaves everything working. Confidentiality keeps
// BPF from reading memory, and whoever is refused therefore is told.
func TestLockdown(t *testing.T) {
	testenv.Root(t)
	text, _ := os.ReadFile("/sys/kernel/security/lockdown")
	switch {
	case strings.Contains(string(text), "[integrity]"):
		if source := doctor(t, confinement{}, nil); source != "ebpf" {
			t.Errorf("source %s", source)
		}
	case strings.Contains(string(text), "[confidentiality]"):
		const reason = "kernel lockdown (confidentiality) keeps BPF from reading the kernel's memory"
		source := doctor(t, confinement{}, []string{reason})
		seesConnection(t, confinement{}, source)
		listsSocket(t, confinement{}, true)
		if r := conntrace(t, "list", "--backend", "ebpf"); r.status != exitOK && !strings.Contains(r.stderr, reason) {
			t.Errorf("list --backend ebpf: %+v", r)
		}
	default:
		t.Skip("this kernel is not locked down")
	}
}

// TestContainer: in a container with PID and network namespaces of its own and a
// /proc that cannot be written, events are seen, and what their PIDs are is said.
func TestContainer(t *testing.T) {
	testenv.Root(t)
	c := confinement{ReadOnly: true, Namespaces: unix.CLONE_NEWPID | unix.CLONE_NEWNET}
	r := finish(t, confined(t, c, command(t, "doctor")))
	if r.status != exitOK || !strings.Contains(r.stdout, "Source in use: ebpf\n") ||
		!strings.Contains(r.stdout, "PID namespace     a container's") || !strings.Contains(r.stdout, "the PIDs of events are the host's") {
		t.Errorf("doctor: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	r = finish(t, confined(t, c, command(t, "list", "--kind", "all", "--backend", "ebpf")))
	if r.status != exitFailed || !strings.Contains(r.stderr, "another PID namespace") {
		t.Errorf("list --backend ebpf: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	r = finish(t, confined(t, c, command(t, "list", "--kind", "all", "--format", "json")))
	if r.status != exitOK || strings.TrimSpace(strings.ReplaceAll(r.stdout, "\n", "")) != "[]" || r.stderr != "" {
		t.Errorf("list: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
}
