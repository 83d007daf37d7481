package render

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// keys returns the keys of a JSON object in their order.
func keys(t *testing.T, object []byte) []string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(object))
	var ks []string
	if _, err := dec.Token(); err != nil { // {
		t.Fatalf("%v in %s", err, object)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			t.Fatalf("%v in %s", err, object)
		}
		ks = append(ks, key.(string))
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			t.Fatalf("%v in %s", err, object)
		}
	}
	return ks
}

func TestEventKeys(t *testing.T) {
	common := []string{
		"time", "event", "proto", "family", "laddr", "raddr", "status", "direction", "pid", "comm", "exe", "uid", "fd",
		"inode", "cookie", "netns", "cgroup",
	}
	more := map[conn.EventType][]string{
		conn.EventClose: {"duration_ns", "bytes_sent", "bytes_received", "retransmits", "rtt_us", "reason", "closed_by", "accepted"},
		conn.EventFail:  {"error"},
		conn.EventGap:   {"lost"},
		conn.EventState: {"old_status"},
	}
	enc := NewJSON()
	for _, ev := range events() {
		want := append(slices.Clone(common), more[ev.Type]...)
		if ev.Reconciled {
			want = append(want, "reconciled")
		}
		line := enc.AppendEvent(nil, &ev)
		if got := keys(t, line); !slices.Equal(got, want) {
			t.Errorf("%v: keys %v, want %v", ev.Type, got, want)
		}
		if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
			t.Errorf("not one line: %q", line)
		}
	}
}

func TestConnKeys(t *testing.T) {
	want := []string{
		"fd", "family", "type", "laddr", "raddr", "status", "pid",
		"proto", "inode", "cookie", "uid", "netns", "comm", "exe", "start", "cgroup", "holders",
	}
	for _, c := range conns() {
		object := AppendConnJSON(nil, &c)
		if got := keys(t, object); !slices.Equal(got, want) {
			t.Errorf("keys %v, want %v", got, want)
		}
	}
}

// TestEventTime checks that the second that the encoder keeps is that of the event.
func TestEventTime(t *testing.T) {
	enc := NewJSON()
	zone := time.FixedZone("", 5*3600+1800)
	for _, at := range []time.Time{
		time.Unix(0, 0), when, when.Add(-1), when.Add(time.Second), when.In(zone), when,
		time.Unix(-1, 999_999_999), time.Unix(1<<33, 1),
	} {
		var got struct{ Time string }
		if err := json.Unmarshal(enc.AppendEvent(nil, &conn.Event{Time: at, Type: conn.EventGap}), &got); err != nil {
			t.Fatal(err)
		}
		if want := at.UTC().Format("2006-01-02T15:04:05.000000000Z"); got.Time != want {
			t.Errorf("time %q, want %q", got.Time, want)
		}
	}
}

// TestUnknown checks that nothing unknown looks like a value.
func TestUnknown(t *testing.T) {
	for _, typ := range []conn.EventType{conn.EventSeed, conn.EventFail, conn.EventClose} {
		var object map[string]any
		line := NewJSON().AppendEvent(nil, &conn.Event{Time: when, Type: typ, Conn: conn.Conn{FD: -1}})
		if err := json.Unmarshal(line, &object); err != nil {
			t.Fatal(err)
		}
		for key, value := range object {
			if known := key == "time" || key == "event" || key == "proto"; known != (value != nil) {
				t.Errorf("%v: %s is %v", typ, key, value)
			}
		}
	}
}

// TestKnownZero checks that what is known to be 0 is told.
func TestKnownZero(t *testing.T) {
	ev := conn.Event{Time: when, Type: conn.EventSeed}
	ev.PID, ev.Process = 1, &conn.Process{HasUID: true}
	ev.Known = conn.KnownInode
	var object map[string]any
	if err := json.Unmarshal(NewJSON().AppendEvent(nil, &ev), &object); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"fd", "uid", "inode"} {
		if object[key] != 0.0 {
			t.Errorf("%s is %v, want 0", key, object[key])
		}
	}
}

// FuzzJSON checks that whatever bytes names consist of, the output is JSON, a
// line of it, with the names in it.
func FuzzJSON(f *testing.F) {
	f.Add("nginx", "/usr/sbin/nginx", "/run/x")
	f.Add("\xff\"", "\x00\n\\", "\u2028")
	f.Fuzz(func(t *testing.T, comm, exe, path string) {
		c := unixSocket(conn.Stream, path, 1, comm)
		c.Process.Executable = exe
		ev := conn.Event{Time: when, Type: conn.EventSeed, Conn: c}
		for _, object := range [][]byte{AppendConnJSON(nil, &c), NewJSON().AppendEvent(nil, &ev)} {
			var got struct{ Comm, Exe, Laddr json.RawMessage }
			if err := json.Unmarshal(object, &got); err != nil {
				t.Fatalf("%v in %s", err, object)
			}
			if bytes.IndexFunc(bytes.TrimSuffix(object, []byte("\n")), func(r rune) bool { return r < ' ' }) >= 0 {
				t.Fatalf("control character in %q", object)
			}
			for raw, want := range map[*json.RawMessage]string{&got.Comm: comm, &got.Exe: exe, &got.Laddr: path} {
				if want == "" && raw != &got.Laddr {
					if string(*raw) != "null" {
						t.Fatalf("%s for an unknown name", *raw)
					}
				} else if s := unquote(t, string(*raw)); s != want {
					t.Fatalf("%s means %q, want %q", *raw, s, want)
				}
			}
		}
	})
}

func benchmarkEvent(b *testing.B, typ conn.EventType, appendEvent func([]byte, *conn.Event) []byte) {
	evs := events()
	ev := evs[slices.IndexFunc(evs, func(ev conn.Event) bool { return ev.Type == typ })]
	var line []byte
	b.ReportAllocs()
	for b.Loop() {
		line = appendEvent(line[:0], &ev)
		ev.Time = ev.Time.Add(time.Microsecond) // so that the second changes at times
	}
	b.SetBytes(int64(len(line)))
}

func BenchmarkJSONConnect(b *testing.B) {
	benchmarkEvent(b, conn.EventConnect, NewJSON().AppendEvent)
}

func BenchmarkJSONClose(b *testing.B) {
	benchmarkEvent(b, conn.EventClose, NewJSON().AppendEvent)
}

func BenchmarkConnJSON(b *testing.B) {
	c := full()
	var line []byte
	b.ReportAllocs()
	for b.Loop() {
		line = AppendConnJSON(line[:0], &c)
	}
}

func TestNoAllocations(t *testing.T) {
	evs := events()
	for name, appendEvent := range map[string]func([]byte, *conn.Event) []byte{
		"json": NewJSON().AppendEvent,
		"text": NewText(true, true).AppendEvent,
	} {
		line := make([]byte, 0, 4096)
		if n := testing.AllocsPerRun(100, func() {
			for i := range evs {
				line = appendEvent(line[:0], &evs[i])
			}
		}); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
