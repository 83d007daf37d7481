package fallback

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// pollSockets is how many TCP sockets the benchmarks of the poller look at.
const pollSockets = 20_000

// BenchmarkPoll looks at sockets that do not change. What is compared is the
// kernel's answer; no process is looked into.
func BenchmarkPoll(b *testing.B) { benchmarkPoll(b, func(b *testing.B, l int) {}) }

// BenchmarkPollNew looks at them when one connection has come and one has gone, whose
// processes must be found.
func BenchmarkPollNew(b *testing.B) {
	benchmarkPoll(b, func(b *testing.B, l int) {
		b.StopTimer()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(b, err)
		must(b, unix.Connect(fd, sockaddr(unix.AF_INET, [16]byte{}, localAddr(b, l).Port())))
		server, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		must(b, err)
		b.Cleanup(func() { unix.Close(fd); unix.Close(server) })
		b.StartTimer()
	})
}

func benchmarkPoll(b *testing.B, change func(b *testing.B, l int)) {
	for _, open := range []func(string) (Source, error){Netlink, Procfs} {
		src, err := open("/proc")
		must(b, err)
		b.Run(src.Name(), func(b *testing.B) {
			unshareNet(b)
			const processes = 4
			for range processes {
				startChild(b, fmt.Sprintf("connections %d", pollSockets/2/processes))
			}
			l := listen(b, unix.AF_INET, [16]byte{})
			p := NewPoller(src, Query{Kind: conn.KindTCP})
			defer p.Close()
			_, err := p.Poll(context.Background())
			must(b, err)
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				change(b, l)
				events, err := p.Poll(context.Background())
				must(b, err)
				for _, e := range events {
					if e.PID == 0 {
						b.Fatalf("%s without a process", e.Type)
					}
				}
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
			if p.Len() < pollSockets {
				b.Fatalf("%d sockets", p.Len())
			}
		})
	}
}

// cpuTime returns the time that this process has used, the kernel's on its behalf
// included. On a busy machine it says more than the time that has passed.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
