package sysinfo

import (
	"strconv"
	"strings"
)

// capabilities are those that matter, with their numbers in
// include/uapi/linux/capability.h.
var capabilities = []struct {
	name string
	bit  uint
}{
	{"CAP_BPF", 39},
	{"CAP_PERFMON", 38},
	{"CAP_NET_ADMIN", 12},
	{"CAP_SYS_PTRACE", 19},
	{"CAP_SYS_ADMIN", 21},
	{"CAP_DAC_READ_SEARCH", 2},
}

type processStatus struct {
	capabilities []Capability
	seccomp      string
}

// parseStatus takes CapEff and Seccomp from the text of /proc/self/status.
func parseStatus(text string) processStatus {
	var s processStatus
	var effective uint64
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "CapEff":
			effective, _ = strconv.ParseUint(value, 16, 64)
		case "Seccomp":
			s.seccomp = map[string]string{"0": "none", "1": "strict", "2": "filter"}[value]
		}
	}
	for _, c := range capabilities {
		s.capabilities = append(s.capabilities, Capability{Name: c.name, Present: effective>>c.bit&1 == 1})
	}
	return s
}

// parseLockdown returns the mode in brackets: "none [integrity] confidentiality".
func parseLockdown(text string) string {
	_, rest, _ := strings.Cut(text, "[")
	mode, _, found := strings.Cut(rest, "]")
	if !found {
		return ""
	}
	return mode
}

// parseUnprivilegedBPF explains kernel.unprivileged_bpf_disabled.
func parseUnprivilegedBPF(text string) string {
	return map[string]string{
		"0": "allowed",
		"1": "disabled until reboot",
		"2": "disabled",
	}[strings.TrimSpace(text)]
}

// parseTracefs returns the first mount point of tracefs in the text of
// /proc/self/mounts.
func parseTracefs(text string) string {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "tracefs" {
			return f[1]
		}
	}
	return ""
}

// parseSocketsInUse returns N of "sockets: used N" in /proc/net/sockstat, 0 if there
// is none.
func parseSocketsInUse(text string) int {
	_, rest, _ := strings.Cut(text, "sockets: used ")
	number, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.Atoi(number)
	return n
}
