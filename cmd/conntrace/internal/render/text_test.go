package render

import (
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

func TestAppendBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0B", 1023: "1023B", 1024: "1.00K", 1536: "1.50K", 10 << 10: "10.0K", 999 << 10: "999K",
		1023 << 10: "1.00M", 1 << 20: "1.00M", 3_412_333: "3.25M", 1 << 40: "1.00T", 1<<64 - 1: "16.0E",
	} {
		if got := string(appendBytes(nil, n)); got != want {
			t.Errorf("appendBytes(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestAppendDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                                      "0us",
		850 * time.Microsecond:                 "850us",
		time.Millisecond:                       "1.00ms",
		203 * time.Millisecond:                 "203ms",
		999*time.Millisecond + 999_999:         "1000ms",
		time.Second:                            "1.00s",
		59 * time.Second:                       "59.0s",
		time.Minute:                            "1m00s",
		2000 * time.Second:                     "33m20s",
		2*time.Hour + 5*time.Minute:            "2h05m",
		99*time.Hour + 59*time.Minute + 59_000: "4d03h",
	} {
		if got := string(appendDuration(nil, d)); got != want {
			t.Errorf("appendDuration(%v) = %s, want %s", d, got, want)
		}
	}
}

func BenchmarkTextConnect(b *testing.B) {
	benchmarkEvent(b, conn.EventConnect, NewText(true, true).AppendEvent)
}

func BenchmarkTextClose(b *testing.B) {
	benchmarkEvent(b, conn.EventClose, NewText(true, true).AppendEvent)
}
