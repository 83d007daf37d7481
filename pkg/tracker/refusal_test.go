package tracker

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/internal/tracepoint"
	"github.com/conntrace/conntrace/pkg/fallback"
)

func TestRemedy(t *testing.T) {
	denied := fmt.Errorf("load program: %w", syscall.EPERM)
	system := func(change func(*sysinfo.Linux), capabilities ...string) sysinfo.Info {
		l := &sysinfo.Linux{BTF: true, Lockdown: "none", HostUsers: true}
		for _, c := range capabilities {
			l.Capabilities = append(l.Capabilities, sysinfo.Capability{Name: c, Present: true})
		}
		if change != nil {
			change(l)
		}
		return sysinfo.Info{OS: "linux", Linux: l}
	}
	old := system(nil, "CAP_SYS_ADMIN")
	old.Release = "5.4.0"
	charged := system(nil, "CAP_BPF", "CAP_PERFMON")
	charged.Release = "5.10.0-46-cloud-amd64"
	verifier := func(log ...string) error {
		return fmt.Errorf("load program: %w", &ebpf.VerifierError{Cause: syscall.EINVAL, Log: log})
	}
	for _, tt := range []struct {
		name string
		err  error
		sys  sysinfo.Info
		want string // part of the remedy; "": there is none
	}{
		{"no capability", denied, system(nil), "CAP_BPF and CAP_PERFMON"},
		{"one capability", denied, system(nil, "CAP_BPF"), "with CAP_PERFMON"},
		{"verifier", verifier("R1 invalid mem access 'scalar'"), system(nil, "CAP_SYS_ADMIN"), "please report it"},
		{"no helper", verifier("invalid func unknown#162"), system(nil, "CAP_SYS_ADMIN"), "one of BPF's helpers"},
		{"old kernel", verifier("unknown func bpf_get_socket_cookie#46"), old, "Linux 5.8 or later"},
		{"confidentiality", verifier("program of this type cannot use helper bpf_probe_read#4"),
			system(func(l *sysinfo.Linux) { l.Lockdown = "confidentiality" }, "CAP_SYS_ADMIN"), "lockdown=integrity or none"},
		{"tracefs", fmt.Errorf("%w: %w", tracepoint.ErrNotMounted, denied), system(nil, "CAP_BPF", "CAP_PERFMON"), "mount -t tracefs"},
		{"closed tracefs", fmt.Errorf("%w: %w", tracepoint.ErrClosed, denied), system(nil, "CAP_BPF", "CAP_PERFMON"), "CAP_DAC_READ_SEARCH"},
		{"no sock_diag", fmt.Errorf("tcp: %w", fallback.ErrNoSockDiag), system(nil), "modprobe"},
		{"locked memory", fmt.Errorf("%w: %w", errMemlock, denied), charged, "LimitMEMLOCK=infinity"},
		{"user namespace", denied, system(func(l *sysinfo.Linux) { l.HostUsers = false }, "CAP_SYS_ADMIN"), "user namespace"},
		{"hidden by seccomp", syscall.ENOSYS, system(func(l *sysinfo.Linux) { l.Seccomp = "filter" }, "CAP_SYS_ADMIN"), "seccomp"},
		{"locked down", denied, system(func(l *sysinfo.Linux) { l.Lockdown = "integrity" }, "CAP_SYS_ADMIN"), "lockdown (integrity)"},
		{"seccomp", denied, system(func(l *sysinfo.Linux) { l.Seccomp = "filter" }, "CAP_SYS_ADMIN"), "seccomp"},
		{"all capabilities", denied, system(nil, "CAP_BPF", "CAP_PERFMON"), "although the capabilities are there"},
		{"no BPF", syscall.ENOSYS, system(nil, "CAP_SYS_ADMIN"), "built without"},
		{"no BTF", errors.New("no BTF"), system(func(l *sysinfo.Linux) { l.BTF = false }, "CAP_SYS_ADMIN"), "CONFIG_DEBUG_INFO_BTF"},
		{"something else", syscall.EINVAL, system(nil, "CAP_SYS_ADMIN"), ""},
		{"another system", fs.ErrPermission, sysinfo.Info{OS: "plan9"}, ""},
	} {
		got := remedy(tt.err, tt.sys)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestCause: an error tells what the kernel said, and still is what it was.
func TestCause(t *testing.T) {
	denied := fmt.Errorf("map create: %w (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", syscall.EPERM)
	if err := cause(denied); err.Error() != "map create: operation not permitted" || !errors.Is(err, syscall.EPERM) {
		t.Errorf("got %v", err)
	}
	report := []string{"472: (85) call bpf_probe_read#4", "", "Reason:", "  The helper is not allowed.", "", "Suggestion:", "  Use another."}
	verifier := &ebpf.VerifierError{Cause: syscall.EINVAL, Log: report}
	err := cause(fmt.Errorf("program x: %w", verifier))
	if err.Error() != "program x: invalid argument: The helper is not allowed." || !errors.As(err, &verifier) {
		t.Errorf("got %v", err)
	}
	verifier = &ebpf.VerifierError{Cause: syscall.EINVAL, Log: []string{"Reason:"}}
	if err := cause(verifier); err.Error() != verifier.Error() {
		t.Errorf("got %v, want %v", err, verifier)
	}
}

// TestRefusedError: whoever is refused everything is told every reason, and can
// ask for them.
func TestRefusedError(t *testing.T) {
	err := refusedError([]Refusal{
		{What: "ebpf", Err: syscall.EPERM, Remedy: "run as root"},
		{What: "netlink", Err: errors.ErrUnsupported},
	})
	if !errors.Is(err, fs.ErrPermission) || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v wraps neither reason", err)
	}
	if want := "ebpf: operation not permitted; run as root\nnetlink: unsupported operation"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}
