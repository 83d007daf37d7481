package tracker

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/internal/procinfo"
	"github.com/conntrace/conntrace/pkg/conn"
)

// TestWireLayout holds the Go types of records equal to the C ones, member by
// member, by the BTF of the compiled object.
func TestWireLayout(t *testing.T) {
	spec, err := bpf.LoadTracker()
	if err != nil {
		t.Fatal(err)
	}
	for name, typ := range map[string]reflect.Type{
		"header":       reflect.TypeFor[wireHeader](),
		"socket_event": reflect.TypeFor[wireSocket](),
		"owned_event":  reflect.TypeFor[wireOwned](),
		"task_event":   reflect.TypeFor[wireTask](),
		"process":      reflect.TypeFor[bpf.TrackerProcess](),
		"close_event":  reflect.TypeFor[wireClose](),
		"account":      reflect.TypeFor[bpf.TrackerAccount](),
	} {
		var c *btf.Struct
		if err := spec.Types.TypeByName(name, &c); err != nil {
			t.Errorf("struct %s: %v", name, err)
			continue
		}
		compareLayout(t, "struct "+name, c, typ)
	}
}

func compareLayout(t *testing.T, where string, c *btf.Struct, typ reflect.Type) {
	t.Helper()
	if uintptr(c.Size) != typ.Size() {
		t.Errorf("%s has %d bytes in C, %d in Go", where, c.Size, typ.Size())
	}
	fields := make([]reflect.StructField, 0, typ.NumField())
	for _, f := range reflect.VisibleFields(typ) {
		if f.Name != "_" {
			fields = append(fields, f)
		}
	}
	if len(fields) != len(c.Members) {
		t.Fatalf("%s has %d members in C, %d in Go", where, len(c.Members), len(fields))
	}
	for i, m := range c.Members {
		f := fields[i]
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.EqualFold(strings.ReplaceAll(m.Name, "_", ""), f.Name) || uintptr(m.Offset.Bytes()) != f.Offset || uintptr(size) != f.Type.Size() {
			t.Errorf("%s: %s at %d, %d bytes in C; %s at %d, %d bytes in Go", where, m.Name, m.Offset.Bytes(), size, f.Name, f.Offset, f.Type.Size())
		}
		if nested, ok := btf.UnderlyingType(m.Type).(*btf.Struct); ok {
			compareLayout(t, where+"."+m.Name, nested, f.Type)
		}
	}
}

// TestAccounts holds the number of accounts equal.
func TestAccounts(t *testing.T) {
	spec, err := bpf.LoadTracker()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := spec.Variables[bpf.TrackerVarAccounts].Size(), uint32(unsafe.Sizeof(accounts{})); got != want {
		t.Errorf("accounts has %d bytes in C, %d in Go", got, want)
	}
}

// aligned returns a copy of b that lies where the kernel would put a record.
func aligned(b []byte) []byte {
	words := make([]uint64, len(b)/8+1)
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(b))
	copy(raw, b)
	return raw
}

// bytesOf returns the memory of a record.
func bytesOf[T any](v *T) []byte {
	return aligned(unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)))
}

func TestDecodeErrors(t *testing.T) {
	socket := wireSocket{}
	socket.Header.Type = uint8(bpf.TrackerEventTypeEVENT_CHILD)
	good := bytesOf(&socket)
	if _, err := decode(good); err != nil {
		t.Error(err)
	}
	unknown := aligned(good)
	*(*uint8)(unsafe.Pointer(&unknown[unsafe.Offsetof(socket.Header.Type)])) = 200
	for _, raw := range [][]byte{nil, good[:1], good[:len(good)-1], append(good, 0), unknown} {
		if _, err := decode(raw); err == nil {
			t.Errorf("no error for a record of %d bytes", len(raw))
		}
	}
}

// FuzzApply feeds the table with arbitrary records: it must neither panic nor hold
// what it was not told of.
func FuzzApply(f *testing.F) {
	for kind := range uint8(len(recordSizes)) {
		c := wireClose{}
		c.Owned.Socket.Header.Type = kind
		c.Owned.Socket.Header.Cookie = uint64(kind)
		f.Add(bytesOf(&c)[:recordSizes[kind]])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tab := newTable()
		tab.beginScan()
		var e conn.Event
		r, err := decode(aligned(b))
		if err != nil {
			return
		}
		owner := &conn.Process{PID: 1}
		for range 2 {
			if tab.apply(r, owner, e.Time, &e) {
				_ = fmt.Sprint(e)
			}
		}
		if len(tab.sockets) > 1 {
			t.Errorf("%d sockets from one record", len(tab.sockets))
		}
	})
}

// BenchmarkStream measures what a connection costs in user space, both of its ends:
// from the ring buffer's memory through the table to a subscriber.
func BenchmarkStream(b *testing.B) {
	owner := bpf.TrackerProcess{Pid: uint32(os.Getpid())}
	record := func(kind bpf.TrackerEventType, old, state conn.Status, end uint16) wireClose {
		var c wireClose
		c.Owned.Socket.Header.Type, c.Owned.Socket.Header.Family = uint8(kind), uint8(conn.Inet)
		c.Owned.Socket.Header.Oldstate, c.Owned.Socket.Header.Newstate = uint8(old), uint8(state)
		c.Owned.Socket.Lport, c.Owned.Socket.Rport = 1+end, 2-end
		c.Owned.Owner = owner
		return c
	}
	connect := record(bpf.TrackerEventTypeEVENT_CONNECT, conn.StatusSynSent, conn.StatusEstablished, 0)
	child := record(bpf.TrackerEventTypeEVENT_CHILD, conn.StatusSynRecv, conn.StatusEstablished, 1)
	accept := record(bpf.TrackerEventTypeEVENT_ACCEPT, conn.StatusEstablished, conn.StatusEstablished, 1)
	close0 := record(bpf.TrackerEventTypeEVENT_CLOSE, conn.StatusFinWait2, conn.StatusClose, 0)
	close1 := record(bpf.TrackerEventTypeEVENT_CLOSE, conn.StatusLastAck, conn.StatusClose, 1)
	records := [][]byte{
		bytesOf(&connect.Owned), bytesOf(&child.Owned.Socket), bytesOf(&accept.Owned), bytesOf(&close0), bytesOf(&close1),
	}
	reader, err := procinfo.New("/proc")
	if err != nil {
		b.Fatal(err)
	}
	h := newHub()
	l := &live{table: newTable(), hub: h, processes: newProcessCache(reader), batch: make([]conn.Event, 0, batchSize)}
	s, err := h.add(Filter{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	events := 0
	ends := [...]uint64{0, 1, 1, 0, 1} // which end of the connection each record is of
	for n := uint64(2); b.Loop(); n += 2 {
		for i, raw := range records {
			header := (*wireHeader)(unsafe.Pointer(&raw[0]))
			header.Time, header.Cookie = n, n+ends[i]
			l.apply(raw)
		}
		for n%batchSize == 0 {
			if _, ok, _ := s.take(); !ok {
				break
			}
			events++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(4*b.N), "ns/event")
	if events == 0 && b.N > batchSize {
		b.Error("no events")
	}
}
