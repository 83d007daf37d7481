package tracker

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/internal/tracepoint"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// refusal says why what could not be had, and what would mend it.
func refusal(what string, err error) Refusal {
	return Refusal{What: what, Err: err, Remedy: remedy(err, sysinfo.Read())}
}

// remedy returns what would mend err on the system sys. Where several hooks were
// refused, err has the reasons of all, and the first that the user can mend counts.
func remedy(err error, sys sysinfo.Info) string {
	linux := sys.Linux
	if linux == nil {
		return ""
	}
	var verifier *ebpf.VerifierError
	switch {
	case errors.As(err, new(*fallback.EnterError)):
		return "it takes CAP_SYS_ADMIN and the right to look into that process (CAP_SYS_PTRACE); procfs needs neither"
	case errors.Is(err, fallback.ErrNoSockDiag):
		return "load its modules: modprobe -a tcp_diag udp_diag unix_diag"
	case sys.Before(5, 8): // nothing else is worth mending: it has no ring buffer
		return "this kernel is too old for it: Linux 5.8 or later is needed"
	case sys.Before(5, 11) && linux.HostUsers && errors.Is(err, errMemlock) && errors.Is(err, fs.ErrPermission):
		return "raise the limit of locked memory (ulimit -l unlimited, LimitMEMLOCK=infinity), or run with CAP_SYS_RESOURCE"
	case errors.Is(err, tracepoint.ErrNotMounted):
		return "mount it (mount -t tracefs tracefs /sys/kernel/tracing), or run with CAP_SYS_ADMIN"
	case errors.Is(err, tracepoint.ErrClosed):
		return "run as root, or with CAP_DAC_READ_SEARCH"
	case errors.As(err, &verifier): // which may be EACCES, but not for want of a privilege
		return verifierRemedy(verifier, linux)
	case isENOSYS(err) && linux.Seccomp == "filter":
		return "a seccomp filter may hide it: allow bpf(2) and perf_event_open(2)"
	case isENOSYS(err):
		return "this kernel was built without it"
	case errors.Is(err, fs.ErrPermission):
		return permissionRemedy(sys)
	case !linux.BTF:
		return "the kernel must have BTF (CONFIG_DEBUG_INFO_BTF=y), readable as /sys/kernel/btf/vmlinux"
	}
	return ""
}

// errMemlock says that the limit of locked memory could not be lifted. Before 5.11, BPF
// maps and programs are charged to it.
var errMemlock = errors.New("lift RLIMIT_MEMLOCK")

// isENOSYS also knows it in errors that do not wrap it (rlimit.RemoveMemlock).
func isENOSYS(err error) bool {
	return errors.Is(err, syscall.ENOSYS) || strings.Contains(err.Error(), syscall.ENOSYS.Error())
}

// permissionRemedy returns what may stand behind an EPERM. The first reason that
// applies is the one to mend first.
func permissionRemedy(sys sysinfo.Info) string {
	linux := sys.Linux
	missing := missingCapabilities(linux, bpfCapabilities...)
	if sys.Before(5, 12) { // cookies come from programs at cgroups there (bpf/cookie.h)
		missing = append(missing, missingCapabilities(linux, "CAP_NET_ADMIN")...)
	}
	switch {
	case len(missing) > 0:
		return "run as root, or with " + strings.Join(missing, " and ")
	case !linux.HostUsers: // bpf_capable() asks for those of the first one
		return "capabilities in a user namespace do not count for BPF: run outside of it"
	case linux.Seccomp == "filter":
		return "a seccomp filter may forbid it: allow bpf(2) and perf_event_open(2)"
	case linux.Lockdown != "" && linux.Lockdown != "none":
		return "kernel lockdown (" + linux.Lockdown + "), or a security module, forbids it; lockdown ends with a boot without Secure Boot or lockdown="
	}
	return "the kernel forbids it although the capabilities are there: a security module, or no BPF trampolines"
}

// verifierRemedy returns what would mend a program that the verifier refuses.
func verifierRemedy(err *ebpf.VerifierError, linux *sysinfo.Linux) string {
	isProbeRead := func(line string) bool { return strings.Contains(line, "bpf_probe_read") }
	if linux.Lockdown == "confidentiality" && slices.ContainsFunc(err.Log, isProbeRead) {
		return "kernel lockdown (confidentiality) keeps BPF from reading the kernel's memory: boot with lockdown=integrity or none"
	}
	if isUnknown := func(line string) bool { return strings.HasPrefix(line, "invalid func unknown#") }; slices.ContainsFunc(err.Log, isUnknown) {
		return "this kernel is too old for it: it lacks one of BPF's helpers"
	}
	return "this kernel's verifier refuses the program: please report it with this message"
}

// cause returns err in the kernel's words: without the library's guess at the memory
// limit, and with the reason where a verifier tells it above its last line.
func cause(err error) error {
	text := strings.TrimSuffix(err.Error(), " (MEMLOCK may be too low, consider rlimit.RemoveMemlock)")
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		if reason := verifierReason(verifier.Log); reason != "" {
			text = strings.Replace(text, verifier.Error(), verifier.Cause.Error()+": "+reason, 1)
		}
	}
	return &told{text, err}
}

// verifierReason returns the line under "Reason:" in the report that verifiers
// write since Linux 7.3.
func verifierReason(log []string) string {
	for i, line := range log {
		if strings.HasPrefix(line, "Reason:") && i+1 < len(log) {
			return strings.TrimSpace(log[i+1])
		}
	}
	return ""
}

// told is an error in other words.
type told struct {
	text string
	error
}

func (t *told) Error() string { return t.text }
func (t *told) Unwrap() error { return t.error }

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
