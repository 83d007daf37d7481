package ringbuf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/conntrace/conntrace/internal/testenv"
)

// A writer does what the kernel's side of a ring buffer does (kernel/bpf/ringbuf.c),
// in memory.
type writer struct {
	r    *Reader
	data []byte // twice in a row
	pos  *uint64
}

func newWriter(t testing.TB, size uint64) *writer {
	memory := func(n uint64) []byte { // aligned as mapped memory is
		words := make([]uint64, n/8)
		return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), n)
	}
	w := &writer{data: memory(2 * size)}
	w.r = &Reader{
		consumer: memory(8), producer: memory(8), size: size,
		remap: func(_ []byte, offset uint64, length int) ([]byte, error) {
			return w.data[offset:][:length:length], nil
		},
	}
	w.pos = position(w.r.producer)
	if err := w.r.move(0); err != nil {
		t.Fatal(err)
	}
	return w
}

// put writes b at offset into the data, and into its mirror image.
func (w *writer) put(offset uint64, b []byte) {
	size := w.r.size
	for i, c := range b {
		at := (offset + uint64(i)) % size
		w.data[at], w.data[at+size] = c, c
	}
}

// write appends a record whose header has the given flags.
func (w *writer) write(record []byte, flags uint32) {
	pos := atomic.LoadUint64(w.pos)
	w.put(pos+headerSize, record)
	w.put(pos, binary.NativeEndian.AppendUint32(nil, uint32(len(record))|flags))
	atomic.StoreUint64(w.pos, (pos+headerSize+uint64(len(record))+7)&^7)
}

func (w *writer) drain(t *testing.T) (records []string) {
	t.Helper()
	n, err := w.r.Drain(func(b []byte) { records = append(records, string(b)) })
	if err != nil || n != len(records) {
		t.Fatalf("Drain() = %d, %v with %d records", n, err, len(records))
	}
	return records
}

// TestDrain: records of many sizes come out whole and in order, also across the
// end of the buffer and of the window.
func TestDrain(t *testing.T) {
	for _, size := range []uint64{4096, 4 * windowSize} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { testDrain(t, newWriter(t, size)) })
	}
}

func testDrain(t *testing.T, w *writer) {
	for i := range 10_000 {
		var want []string
		for j := range 3 {
			record := fmt.Sprintf("%d.%d:%s", i, j, bytes.Repeat([]byte{'x'}, i%300))
			w.write([]byte(record), 0)
			want = append(want, record)
		}
		w.write([]byte("discarded"), discardBit)
		if w.r.Used() == 0 {
			t.Fatal("nothing to read")
		}
		if got := w.drain(t); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("round %d: %q, want %q", i, got, want)
		}
		if n := w.r.Used(); n != 0 {
			t.Fatalf("%d bytes are left", n)
		}
	}
}

// TestDrainBusy: a record that is not committed holds back those behind it.
func TestDrainBusy(t *testing.T) {
	w := newWriter(t, 4096)
	w.write([]byte("first"), 0)
	busy := atomic.LoadUint64(w.pos)
	w.write([]byte("second"), busyBit)
	w.write([]byte("third"), 0)
	if got := w.drain(t); fmt.Sprint(got) != "[first]" {
		t.Errorf("got %q", got)
	}
	w.put(busy, binary.NativeEndian.AppendUint32(nil, uint32(len("second"))))
	if got := w.drain(t); fmt.Sprint(got) != "[second third]" {
		t.Errorf("got %q", got)
	}
}

// TestWait uses a ring buffer of the kernel's: an empty one lets Wait sleep until
// its time is over or Interrupt is called.
func TestWait(t *testing.T) {
	testenv.Root(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: uint32(os.Getpagesize())})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	r, err := New(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(1); err != nil {
		t.Errorf("Wait: %v", err)
	}
	if n, err := r.Drain(func([]byte) {}); n != 0 || err != nil {
		t.Errorf("%d records in an empty buffer, %v", n, err)
	}
	time.AfterFunc(10*time.Millisecond, r.Interrupt)
	for range 2 {
		if err := r.Wait(-1); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Wait after Interrupt: %v", err)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestNotARing: another map is refused.
func TestNotARing(t *testing.T) {
	testenv.Root(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if r, err := New(m); err == nil {
		r.Close()
		t.Error("no error")
	}
}

func BenchmarkDrain(b *testing.B) {
	w := newWriter(b, 1<<20)
	record := make([]byte, 136)
	const batch = 1000
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for range batch {
			w.write(record, 0)
		}
		b.StartTimer()
		if n, err := w.r.Drain(func([]byte) {}); n != batch || err != nil {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/record")
}
