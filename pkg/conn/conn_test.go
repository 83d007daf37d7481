package conn

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

func TestAddr(t *testing.T) {
	ap := netip.MustParseAddrPort
	for _, tt := range []struct {
		addr   Addr
		text   string
		ap     netip.AddrPort
		path   string
		valid  bool
		isUnix bool
	}{
		{Addr{}, "", netip.AddrPort{}, "", false, false},
		{AddrIPv4([4]byte{127, 0, 0, 1}, 80), "127.0.0.1:80", ap("127.0.0.1:80"), "", true, false},
		{AddrIPv4([4]byte{127, 0, 0, 1}, 0), "", netip.AddrPort{}, "", false, false},
		{AddrIPv4Exact([4]byte{}, 0), "0.0.0.0:0", ap("0.0.0.0:0"), "", true, false},
		{AddrIPv6Exact([16]byte{}, 0), "[::]:0", ap("[::]:0"), "", true, false},
		{AddrFrom(ap("[::1%lo]:80")), "[::1]:80", ap("[::1]:80"), "", true, false},
		{AddrFrom(ap("[::ffff:1.2.3.4]:80")), "[::ffff:1.2.3.4]:80", ap("[::ffff:1.2.3.4]:80"), "", true, false},
		{AddrFrom(ap("[::]:0")), "", netip.AddrPort{}, "", false, false},
		{AddrFrom(netip.AddrPort{}), "", netip.AddrPort{}, "", false, false},
		{AddrUnix(""), "", netip.AddrPort{}, "", true, true},
		{AddrUnix("/a b\xff"), "/a b\xff", netip.AddrPort{}, "/a b\xff", true, true},
		{AddrSunPath([]byte("/path\x00rest")), "/path", netip.AddrPort{}, "/path", true, true},
		{AddrSunPath([]byte("\x00ab\x00")), "@ab@", netip.AddrPort{}, "@ab@", true, true},
		{AddrSunPath(nil), "", netip.AddrPort{}, "", true, true},
	} {
		a := tt.addr
		if a.String() != tt.text || a.AddrPort() != tt.ap || a.Path() != tt.path || a.IsValid() != tt.valid || a.IsUnix() != tt.isUnix {
			t.Errorf("%q: %v, %q, valid %t, unix %t, want %+v", a, a.AddrPort(), a.Path(), a.IsValid(), a.IsUnix(), tt)
		}
	}
	if AddrUnix("") == (Addr{}) {
		t.Error("a unix socket without a name has no address")
	}
}

func TestAddrIn(t *testing.T) {
	a := AddrFrom(netip.MustParseAddrPort("[::ffff:10.1.2.3]:1"))
	for prefix, want := range map[string]bool{
		"10.0.0.0/8": true, "::ffff:10.0.0.0/104": true, "::/0": true, "11.0.0.0/8": false, "2001:db8::/32": false,
	} {
		if got := a.In([]netip.Prefix{netip.MustParsePrefix(prefix)}); got != want {
			t.Errorf("%s in %s: %t", a, prefix, got)
		}
	}
	if a.In(nil) || AddrUnix("/x").In([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}) {
		t.Error("in what it is not in")
	}
}

func TestKind(t *testing.T) {
	for _, name := range KindNames() {
		k, err := ParseKind(name)
		if err != nil || k.String() != name || k.Check() != nil {
			t.Errorf("ParseKind(%q) = %s, %v", name, k, err)
		}
	}
	for _, bad := range []string{"", "TCP", "tcp ", "raw"} {
		if _, err := ParseKind(bad); err == nil {
			t.Errorf("ParseKind(%q): no error", bad)
		} else if !strings.Contains(err.Error(), strings.Join(KindNames(), ", ")) {
			t.Errorf("ParseKind(%q): %v does not list the valid kinds", bad, err)
		}
	}
	for _, bad := range []Kind{0, KindAll + 1, 0xff} {
		if bad.Check() == nil {
			t.Errorf("Kind(%d).Check() = nil", bad)
		}
	}
	for k, want := range map[Kind]string{0: "none", KindTCP4 | KindUnix: "tcp4|unix", KindInet: "inet"} {
		if k.String() != want {
			t.Errorf("Kind(%d) is %s, want %s", k, k, want)
		}
	}
	for _, tt := range []struct {
		c    Conn
		want Kind
	}{
		{Conn{Family: Inet, Type: Stream}, KindTCP4},
		{Conn{Family: Inet6, Type: Stream}, KindTCP6},
		{Conn{Family: Inet, Type: Datagram}, KindUDP4},
		{Conn{Family: Inet6, Type: Datagram}, KindUDP6},
		{Conn{Family: Unix, Type: SeqPacket}, KindUnix},
		{Conn{Family: Inet, Type: SeqPacket}, 0},
		{Conn{}, 0},
	} {
		if got := tt.c.Kind(); got != tt.want {
			t.Errorf("%s %s is of kind %s, want %s", tt.c.Family, tt.c.Type, got, tt.want)
		}
	}
}

// TestNames: every value prints, and what can be parsed comes back.
func TestNames(t *testing.T) {
	for s := StatusNone; s <= StatusBound; s++ {
		if got, err := ParseStatus(strings.ToLower(s.String())); got != s || err != nil {
			t.Errorf("ParseStatus(%q) = %s, %v", s, got, err)
		}
	}
	for e := EventSeed; e <= EventGap; e++ {
		if got, err := ParseEventType(e.String()); got != e || err != nil {
			t.Errorf("ParseEventType(%q) = %s, %v", e, got, err)
		}
	}
	for _, d := range []Direction{Outbound, Inbound} {
		if got, err := ParseDirection(d.String()); got != d || err != nil {
			t.Errorf("ParseDirection(%q) = %s, %v", d, got, err)
		}
	}
	if _, err := ParseEventType("unknown"); err == nil || !strings.Contains(err.Error(), "seed, listen, connect, accept, fail, close, gap") {
		t.Errorf("an unknown event: %v", err)
	}
	if d, err := ParseDirection("sideways"); d != 0 || err == nil {
		t.Errorf("an unknown direction: %s, %v", d, err)
	}
	for got, want := range map[string]string{
		Inet.String(): "AF_INET", Inet6.String(): "AF_INET6", Unix.String(): "AF_UNIX", Family(200).String(): "AF_200",
		Stream.String(): "SOCK_STREAM", Datagram.String(): "SOCK_DGRAM", SeqPacket.String(): "SOCK_SEQPACKET", Type(9).String(): "SOCK_9",
		Status(99).String(): "99", ReasonRefused.String(): "refused", Reason(0).String(): "unknown",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestText: the types can be put into JSON and read back.
func TestText(t *testing.T) {
	type all struct {
		Kind   Kind
		Status Status
	}
	in := all{KindTCP, StatusTimeWait}
	b, err := json.Marshal(in)
	if err != nil || string(b) != `{"Kind":"tcp","Status":"TIME_WAIT"}` {
		t.Fatalf("%s, %v", b, err)
	}
	var out all
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Errorf("%+v, %v", out, err)
	}
	if err := json.Unmarshal([]byte(`{"Kind":"raw"}`), &out); err == nil {
		t.Error("a bad kind: no error")
	}
}
