package sysinfo

import (
	"runtime"
	"slices"
	"testing"
)

func TestRead(t *testing.T) {
	info := Read()
	if info.OS != runtime.GOOS || info.Arch != runtime.GOARCH || info.Release == "" {
		t.Errorf("Read() = %+v", info)
	}
	if (info.Linux != nil) != (runtime.GOOS == "linux") {
		t.Errorf("Linux = %v on %s", info.Linux, runtime.GOOS)
	}
	if info.Linux != nil && len(info.Linux.Capabilities) != len(capabilities) {
		t.Errorf("capabilities = %v", info.Linux.Capabilities)
	}
}

func TestBefore(t *testing.T) {
	for release, want := range map[string]bool{
		"5.10.0-46-cloud-amd64": true,
		"5.18":                  true,
		"5.19.0":                false,
		"6.1.0-56-cloud-amd64":  false,
		"4.20":                  true,
		"":                      false,
		"unknown":               false,
	} {
		if got := (Info{Release: release}).Before(5, 19); got != want {
			t.Errorf("%q is before 5.19: %v", release, got)
		}
	}
}

func TestParseStatus(t *testing.T) {
	s := parseStatus("Name:\tconntrace\nCapPrm:\t000001ffffffffff\nCapEff:\t0000008000080000\nSeccomp:\t2\n")
	var present []string
	for _, c := range s.capabilities {
		if c.Present {
			present = append(present, c.Name)
		}
	}
	if want := []string{"CAP_BPF", "CAP_SYS_PTRACE"}; !slices.Equal(present, want) {
		t.Errorf("present = %v, want %v", present, want)
	}
	if s.seccomp != "filter" {
		t.Errorf("seccomp = %q", s.seccomp)
	}
	for _, text := range []string{"", "CapEff", "CapEff:\tx\nSeccomp:\t9\n"} {
		s := parseStatus(text)
		if s.seccomp != "" || slices.ContainsFunc(s.capabilities, func(c Capability) bool { return c.Present }) {
			t.Errorf("parseStatus(%q) = %+v", text, s)
		}
	}
}

func TestParseSocketsInUse(t *testing.T) {
	for text, want := range map[string]int{
		"sockets: used 297\nTCP: inuse 5 orphan 0 tw 0 alloc 6 mem 1\n": 297,
		"sockets: used x\n": 0,
		"":                  0,
	} {
		if got := parseSocketsInUse(text); got != want {
			t.Errorf("parseSocketsInUse(%q) = %d, want %d", text, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
		parse            func(string) string
	}{
		{"lockdown", "[none] integrity confidentiality\n", "none", parseLockdown},
		{"lockdown", "none [integrity] confidentiality\n", "integrity", parseLockdown},
		{"lockdown", "none", "", parseLockdown},
		{"lockdown", "", "", parseLockdown},
		{"lockdown", "[none", "", parseLockdown},
		{"unprivileged_bpf", "2\n", "disabled", parseUnprivilegedBPF},
		{"unprivileged_bpf", "1\n", "disabled until reboot", parseUnprivilegedBPF},
		{"unprivileged_bpf", "", "", parseUnprivilegedBPF},
		{"tracefs", "proc /proc proc rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\n", "/sys/kernel/tracing", parseTracefs},
		{"tracefs", "tracefs\n\n", "", parseTracefs},
	} {
		if got := tt.parse(tt.text); got != tt.want {
			t.Errorf("%s: parse(%q) = %q, want %q", tt.name, tt.text, got, tt.want)
		}
	}
}
