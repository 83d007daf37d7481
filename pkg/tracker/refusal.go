package tracker

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// refusal says why what could not be had, and what would mend it.
func refusal(what string, err error) Refusal {
	return Refusal{What: what, Err: err, Remedy: remedy(err, sysinfo.Read())}
}

// remedy returns what would mend err on the system sys.
func remedy(err error, sys sysinfo.Info) string {
	linux := sys.Linux
	if linux == nil {
		return ""
	}
	missing := missingCapabilities(linux, bpfCapabilities...)
	switch {
	case errors.As(err, new(*fallback.EnterError)):
		return "it takes CAP_SYS_ADMIN and the right to look into that process (CAP_SYS_PTRACE); procfs needs neither"
	case errors.As(err, new(*ebpf.VerifierError)): // which is EACCES, but not for want of a privilege
		return "this kernel's verifier refuses the program: please report it with this message"
	case errors.Is(err, syscall.ENOSYS):
		return "this kernel was built without it"
	case errors.Is(err, fs.ErrPermission) && linux.Seccomp == "filter" && len(missing) == 0:
		return "a seccomp filter may forbid it: allow bpf(2) and perf_event_open(2)"
	case errors.Is(err, fs.ErrPermission) && len(missing) > 0:
		return "run as root, or with " + strings.Join(missing, " and ")
	case errors.Is(err, fs.ErrPermission) && linux.Lockdown != "" && linux.Lockdown != "none":
		return "kernel lockdown (" + linux.Lockdown + ") forbids it; it ends with a boot without Secure Boot or lockdown="
	case errors.Is(err, fs.ErrPermission):
		return "the kernel forbids it although the capabilities are there: lockdown, or no BPF trampolines"
	case !linux.BTF:
		return "the kernel must have BTF (CONFIG_DEBUG_INFO_BTF=y)"
	}
	return ""
}

// bpfCapabilities are what loading and attaching the programs takes (capabilities(7)).
var bpfCapabilities = []string{"CAP_BPF", "CAP_PERFMON"}

// missingCapabilities returns those of names that the process lacks. CAP_SYS_ADMIN
// stands for each (capable(7), bpf_capable() and perfmon_capable()).
func missingCapabilities(linux *sysinfo.Linux, names ...string) []string {
	present := make(map[string]bool)
	for _, c := range linux.Capabilities {
		present[c.Name] = c.Present
	}
	var missing []string
	for _, n := range names {
		if !present[n] && !present["CAP_SYS_ADMIN"] {
			missing = append(missing, n)
		}
	}
	return missing
}
