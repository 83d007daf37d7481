package main

import (
	"encoding/json"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestWrongUse checks that each mistake ends with status 2, nothing on stdout and
// one line on stderr that says what is wrong and where to read on.
func TestWrongUse(t *testing.T) {
	for args, want := range map[string]string{
		"--kind foo":                "--kind: unknown kind \"foo\"; valid kinds are all, tcp,",
		"list --kind TCP":           "valid kinds are all, tcp,",
		"list --kind udp -t4":       "no socket is both --kind udp and -t4",
		"list -lx":                  "which unix sockets listen is not known",
		"watch --kind udp":          "only TCP sockets have events",
		"-x":                        "only TCP sockets have events",
		"list -o text":              "--format: unknown format \"text\"; valid ones are table, json, ndjson, csv",
		"watch -o csv":              "valid ones are text, json",
		"--backend bpf":             "valid ones are auto, ebpf, netlink, procfs, native",
		"--event open":              "valid ones are seed, listen, connect, accept, fail, close, gap",
		"--direction up":            "valid ones are outbound, inbound",
		"list --state OPEN":         "valid ones are NONE, ESTABLISHED,",
		"list --pid 0":              "\"0\" is no process ID",
		"--pid 12,x":                "\"x\" is no process ID",
		"list --port 65536":         "\"65536\" is no port",
		"--addr 10.0.0":             "\"10.0.0\" is no address",
		"--addr fe80::1%eth0":       "is no address",
		"list --comm=":              "a process name cannot be empty",
		"--count 0":                 "\"0\" is no count",
		"--duration 5":              "\"5\" is no time",
		"--poll-interval -1s":       "\"-1s\" is no time",
		"--hooks tp_btf,x":          "unknown hook \"x\"; valid ones are tp_btf, raw_tp,",
		"--procfs /does/not/exist":  "is no directory that can be read",
		"--nonsense":                "unknown flag: --nonsense",
		"list -Z":                   "unknown shorthand flag: 'Z' in -Z",
		"list -p":                   "flag needs an argument",
		"lst":                       "unknown command \"lst\"; did you mean list?",
		"frobnicate":                "valid ones are completion, doctor, list, version, watch",
		"list tcp":                  "list takes no argument \"tcp\"",
		"doctor now":                "doctor takes no argument \"now\"",
		"version --format yaml":     "valid ones are text, json",
		"help frobnicate":           "unknown command \"frobnicate\"",
		"completion":                "valid ones are bash, fish, powershell, zsh",
		"completion tcsh":           "valid ones are bash, fish, powershell, zsh",
		"completion bash something": "bash takes no argument",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			r := conntrace(t, strings.Fields(args)...)
			if r.status != exitUsage || r.stdout != "" {
				t.Errorf("exit status %d, stdout %q", r.status, r.stdout)
			}
			if !strings.HasPrefix(r.stderr, "conntrace: ") || strings.Count(r.stderr, "\n") != 1 || !strings.HasSuffix(r.stderr, " --help'\n") {
				t.Errorf("stderr is not one line with a hint: %q", r.stderr)
			}
			if !strings.Contains(r.stderr, want) {
				t.Errorf("stderr %q lacks %q", r.stderr, want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range []string{"--help", "watch --help", "list -h", "doctor --help", "version --help", "help list", "help"} {
		r := conntrace(t, strings.Fields(args)...)
		if r.status != exitOK || r.stderr != "" {
			t.Errorf("%s: exit status %d, stderr %q", args, r.status, r.stderr)
		}
		for _, want := range []string{"Usage:\n  conntrace", "Examples:\n  ", "Exit status: 0", "--format FORMAT"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("%s: the help lacks %q", args, want)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	if out := mustRun(t, "version"); !strings.HasPrefix(out, "conntrace ") || !strings.Contains(out, runtime.Version()) {
		t.Errorf("version: %q", out)
	}
	var v version
	if err := json.Unmarshal([]byte(mustRun(t, "version", "--format", "json")), &v); err != nil {
		t.Fatal(err)
	}
	if v.Version == "" || v.Go != runtime.Version() || v.OS != runtime.GOOS || v.Arch != runtime.GOARCH {
		t.Errorf("version --format json: %+v", v)
	}
}

// TestCompletion asks for the values of flags as a shell does.
func TestCompletion(t *testing.T) {
	for args, want := range map[string]string{
		"list --kind ":          "inet6",
		"--format ":             "json",
		"list --format ":        "ndjson",
		"watch --backend ":      "netlink",
		"--event connect,":      "connect,close",
		"--direction ":          "inbound",
		"--hooks tp_btf,":       "tp_btf,fexit",
		"list --state ":         "LISTEN",
		"help ":                 "doctor",
		"completion ":           "zsh",
		"watch --poll-interval": "--poll-interval",
	} {
		words := strings.Split(args, " ")
		out := mustRun(t, append([]string{"__complete"}, words...)...)
		if !slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
			value, _, _ := strings.Cut(line, "\t")
			return value == want
		}) {
			t.Errorf("%q<TAB> does not offer %s: %s", args, want, out)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := mustRun(t, "completion", shell); !strings.Contains(out, "conntrace") {
			t.Errorf("completion %s: %q", shell, out)
		}
	}
}

func TestDoctor(t *testing.T) {
	r := conntrace(t, "doctor")
	if r.status != exitOK || !strings.Contains(r.stdout, "Source in use: ") || !strings.Contains(r.stdout, runtime.GOOS) {
		t.Errorf("doctor: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	var d diagnosis
	if err := json.Unmarshal([]byte(mustRun(t, "doctor", "--format", "json")), &d); err != nil {
		t.Fatal(err)
	}
	if d.Source == nil || d.Error != nil || d.Hooks == nil || d.Refused == nil || d.Limits == nil {
		t.Errorf("doctor --format json: %+v", d)
	}
	for _, refused := range d.Refused {
		if refused.What == "" || refused.Reason == "" {
			t.Errorf("a refusal without a reason: %+v", refused)
		}
	}

	// A source that this system does not have does not work.
	foreign := "native"
	if *d.Source == "native" {
		foreign = "netlink"
	}
	if r := conntrace(t, "doctor", "--backend", foreign); r.status != exitFailed || !strings.Contains(r.stdout, "No source works") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("doctor --backend %s: exit status %d\n%s%s", foreign, r.status, r.stdout, r.stderr)
	}
}
