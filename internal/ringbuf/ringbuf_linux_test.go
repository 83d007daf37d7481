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
// in memory that is laid out as New maps it.
type writer struct {
	r    *Reader
	size uint64
	pos  *uint64
}

func newWriter(size uint64) *writer {
	page := os.Getpagesize()
	words := make([]uint64, (page+2*int(size))/8) // aligned as mapped memory is
	producer := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
	consumer := make([]uint64, page/8)
	return &writer{
		r: &Reader{
			consumer: unsafe.Slice((*byte)(unsafe.Pointer(&consumer[0])), page),
			producer: producer,
			mask:     size - 1,
		},
		size: size,
		pos:  &words[0],
	}
}

// put writes b at offset into the data, and into its mirror image.
func (w *writer) put(offset uint64, b []byte) {
	data := w.r.producer[len(w.r.consumer):]
	for i, c := range b {
		at := (offset + uint64(i)) % w.size
		data[at], data[at+w.size] = c, c
	}
}

// write appends a record whose header has the given flags.
func (w *writer) write(record []byte, flags uint32) {
	pos := atomic.LoadUint64(w.pos)
	w.put(pos+headerSize, record)
	w.put(pos, binary.NativeEndian.AppendUint32(nil, uint32(len(record))|flags))
	atomic.StoreUint64(w.pos, (pos+headerSize+uint64(len(record))+7)&^7)
}

func (w *writer) drain() (records []string) {
	w.r.Drain(func(b []byte) { records = append(records, string(b)) })
	return records
}

// TestDrain: records of many sizes come out whole and in order, also across the
// end of the buffer.
func TestDrain(t *testing.T) {
	w := newWriter(4096)
	for i := range 1000 {
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
		if got := w.drain(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("round %d: %q, want %q", i, got, want)
		}
		if n := w.r.Used(); n != 0 {
			t.Fatalf("%d bytes are left", n)
		}
	}
}

// TestDrainBusy: a record that is not committed holds back those behind it.
func TestDrainBusy(t *testing.T) {
	w := newWriter(4096)
	w.write([]byte("first"), 0)
	busy := atomic.LoadUint64(w.pos)
	w.write([]byte("second"), busyBit)
	w.write([]byte("third"), 0)
	if got := w.drain(); fmt.Sprint(got) != "[first]" {
		t.Errorf("got %q", got)
	}
	w.put(busy, binary.NativeEndian.AppendUint32(nil, uint32(len("second"))))
	if got := w.drain(); fmt.Sprint(got) != "[second third]" {
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
	if n := r.Drain(func([]byte) {}); n != 0 {
		t.Errorf("%d records in an empty buffer", n)
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
	w := newWriter(1 << 20)
	record := make([]byte, 136)
	const batch = 1000
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for range batch {
			w.write(record, 0)
		}
		b.StartTimer()
		if n := w.r.Drain(func([]byte) {}); n != batch {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/record")
}
