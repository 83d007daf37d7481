package tracker_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestForcedHooks: what Config.Hooks names is what is attached for its purpose, and
// nothing else; or Open says why not.
func TestForcedHooks(t *testing.T) {
	testenv.Root(t)
	points := map[string]string{
		"tp_btf":     "tp_btf/inet_sock_set_state",
		"raw_tp":     "raw_tp/inet_sock_set_state",
		"tracepoint": "tracepoint/sock/inet_sock_set_state",
		"fexit":      "fexit/inet_csk_accept",
		"kretprobe":  "kretprobe/inet_csk_accept",
		"syscall":    "tracepoint/syscalls/sys_exit_accept4",
	}
	for _, name := range tracker.HookNames() {
		t.Run(name, func(t *testing.T) {
			tr, err := tracker.Open(t.Context(), tracker.Config{Hooks: []string{name}})
			if err != nil {
				if name == "tp_btf" || !strings.Contains(err.Error(), points[name]+": ") {
					t.Fatal(err)
				}
				t.Skip(err) // not every kernel has every hook, but it must say which
			}
			defer tr.Close()
			if !attached(tr, points[name]) {
				t.Errorf("%s is not attached: %+v", points[name], tr.Info().Hooks)
			}
			i := slices.Index(tracker.HookNames(), name)
			others := tracker.HookNames()[:3]
			if i >= 3 {
				others = tracker.HookNames()[3:]
			}
			for _, other := range others {
				if other != name && attached(tr, points[other]) {
					t.Errorf("%s is attached too", points[other])
				}
			}
			cookies := attached(tr, "sockops") && attached(tr, "cgroup/sock_create")
			if needs := name == "raw_tp" || name == "tracepoint"; needs && !cookies {
				t.Errorf("no cookies: %+v", tr.Info().Hooks)
			}
		})
	}
}

func TestHooksErrors(t *testing.T) {
	if _, err := tracker.Open(t.Context(), tracker.Config{Hooks: []string{"tp_btf", "bogus"}}); err == nil ||
		!strings.Contains(err.Error(), `"bogus"`) || !strings.Contains(err.Error(), "raw_tp") {
		t.Errorf("an unknown hook: %v", err)
	}
	if _, err := tracker.Open(t.Context(), tracker.Config{Hooks: []string{"tp_btf"}, Source: tracker.SourceNetlink}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("hooks of another source: %v", err)
	}
}
