package tracker

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"

	"github.com/conntrace/conntrace/bpf"
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

// BenchmarkApply measures what a connection costs in user space: its connect and
// its close, from the ring buffer's memory to the event.
func BenchmarkApply(b *testing.B) {
	var connect wireOwned
	connect.Socket.Header.Type = uint8(bpf.TrackerEventTypeEVENT_CONNECT)
	connect.Socket.Header.Newstate = uint8(conn.StatusEstablished)
	connect.Socket.Header.Family = uint8(conn.Inet)
	connect.Socket.Lport, connect.Socket.Rport = 1, 2
	closing := wireClose{Owned: connect}
	closing.Owned.Socket.Header.Type = uint8(bpf.TrackerEventTypeEVENT_CLOSE)
	records := [][]byte{bytesOf(&connect), bytesOf(&closing)}
	cookie := func(raw []byte) *uint64 { return (*uint64)(unsafe.Pointer(&raw[unsafe.Offsetof(wireHeader{}.Cookie)])) }

	tab := newTable()
	owner := &conn.Process{PID: 1}
	var e conn.Event
	b.ReportAllocs()
	for n := uint64(1); b.Loop(); n++ {
		for _, raw := range records {
			*cookie(raw) = n
			r, err := decode(raw)
			if err != nil {
				b.Fatal(err)
			}
			tab.apply(r, owner, e.Time, &e)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(2*b.N), "ns/event")
}
