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
)

func TestRemedy(t *testing.T) {
	denied := fmt.Errorf("load program: %w", syscall.EPERM)
	system := func(change func(*sysinfo.Linux), capabilities ...string) sysinfo.Info {
		l := &sysinfo.Linux{BTF: true, Lockdown: "none"}
		for _, c := range capabilities {
			l.Capabilities = append(l.Capabilities, sysinfo.Capability{Name: c, Present: true})
		}
		if change != nil {
			change(l)
		}
		return sysinfo.Info{OS: "linux", Linux: l}
	}
	for _, tt := range []struct {
		name string
		err  error
		sys  sysinfo.Info
		want string // part of the remedy; "": there is none
	}{
		{"no capability", denied, system(nil), "CAP_BPF and CAP_PERFMON"},
		{"one capability", denied, system(nil, "CAP_BPF"), "with CAP_PERFMON"},
		{"verifier", fmt.Errorf("load program: %w", &ebpf.VerifierError{Cause: syscall.EACCES}), system(nil, "CAP_SYS_ADMIN"), "please report it"},
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
