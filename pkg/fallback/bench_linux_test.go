package fallback

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

// benchSockets is how many TCP sockets the benchmarks of sources look at.
const benchSockets = 10_000

// manySockets opens TCP connections over loopback, of which this process holds
// both ends.
func manySockets(b *testing.B) {
	b.Helper()
	var limit unix.Rlimit
	must(b, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	limit.Cur = limit.Max
	must(b, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	if limit.Max < benchSockets+100 {
		b.Skipf("needs %d descriptors", benchSockets+100)
	}
	l := listen(b, unix.AF_INET, [16]byte{})
	port := localAddr(b, l).Port()
	for range benchSockets / 2 {
		fd := connect(b, unix.AF_INET, [16]byte{}, port)
		// A reset leaves nothing in TIME_WAIT.
		must(b, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		accept(b, l)
	}
}

func BenchmarkSnapshot(b *testing.B) {
	manySockets(b)
	for _, src := range sources(b) {
		b.Run(src.Name(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if s := snapshot(b, src, Query{Kind: conn.KindTCP}); len(s.Conns) < benchSockets {
					b.Fatalf("%d rows", len(s.Conns))
				}
			}
		})
	}
}

// The tables alone, without who holds the sockets.
func BenchmarkTables(b *testing.B) {
	manySockets(b)
	for _, src := range sources(b) {
		b.Run(src.Name(), func(b *testing.B) {
			tables := src.(*linuxSource).tables
			var s Snapshot
			b.ReportAllocs()
			for b.Loop() {
				s.Conns = s.Conns[:0]
				must(b, tables.Read(context.Background(), tables.Home(), conn.KindTCP, &s))
			}
		})
	}
}

func BenchmarkHolders(b *testing.B) {
	manySockets(b)
	b.ReportAllocs()
	for b.Loop() {
		holders, _, err := procHolders{"/proc"}.Append(context.Background(), nil)
		must(b, err)
		if len(holders) < benchSockets {
			b.Fatalf("%d holders", len(holders))
		}
	}
}

func BenchmarkJoin(b *testing.B) {
	manySockets(b)
	s := snapshot(b, sources(b)[0], Query{Kind: conn.KindTCP})
	holders, _, err := procHolders{"/proc"}.Append(context.Background(), nil)
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		joinAll(s.Conns, holders, Query{Kind: conn.KindTCP})
	}
}
