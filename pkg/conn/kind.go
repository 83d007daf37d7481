package conn

import (
	"fmt"
	"strings"
)

// A Kind is a set of sockets, as psutil's net_connections(kind) takes it. Kinds
// can be combined with |. The zero Kind is no kind at all.
type Kind uint8

// The kinds of psutil. Every one is a union of the first five.
const (
	KindTCP4 Kind = 1 << iota // TCP over AF_INET
	KindTCP6                  // TCP over AF_INET6
	KindUDP4                  // UDP over AF_INET
	KindUDP6                  // UDP over AF_INET6
	KindUnix                  // unix sockets of every type

	KindTCP   = KindTCP4 | KindTCP6
	KindUDP   = KindUDP4 | KindUDP6
	KindInet4 = KindTCP4 | KindUDP4
	KindInet6 = KindTCP6 | KindUDP6
	KindInet  = KindInet4 | KindInet6 // psutil's default
	KindAll   = KindInet | KindUnix
)

// kinds holds psutil's names in the order in which its error lists them.
var kinds = []struct {
	name string
	kind Kind
}{
	{"all", KindAll},
	{"tcp", KindTCP},
	{"tcp4", KindTCP4},
	{"udp", KindUDP},
	{"udp4", KindUDP4},
	{"inet", KindInet},
	{"inet4", KindInet4},
	{"inet6", KindInet6},
	{"tcp6", KindTCP6},
	{"udp6", KindUDP6},
	{"unix", KindUnix},
}

// KindNames returns psutil's names of kinds, in psutil's order.
func KindNames() []string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.name
	}
	return names
}

// ParseKind returns the kind with psutil's name s, exact and case-sensitive. The
// error of an unknown name lists the valid ones.
func ParseKind(s string) (Kind, error) {
	for _, k := range kinds {
		if k.name == s {
			return k.kind, nil
		}
	}
	return 0, fmt.Errorf("unknown kind %q; valid kinds are %s", s, strings.Join(KindNames(), ", "))
}

// Check returns an error that lists the valid kinds unless k is a non-empty
// union of them.
func (k Kind) Check() error {
	if k == 0 || k&^KindAll != 0 {
		return fmt.Errorf("invalid kind %d; valid kinds are %s", uint8(k), strings.Join(KindNames(), ", "))
	}
	return nil
}

// Has reports whether every socket of other is also one of k.
func (k Kind) Has(other Kind) bool { return k&other == other }

// String returns psutil's name of k, names joined with '|' for a union that has
// none, and "none" for the zero Kind.
func (k Kind) String() string {
	var parts []string
	for _, n := range kinds {
		if n.kind == k {
			return n.name
		}
		if single := n.kind&(n.kind-1) == 0; single && k.Has(n.kind) {
			parts = append(parts, n.name)
		}
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, "|")
}

// MarshalText returns [Kind.String], or an error for what is no kind.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), k.Check() }

// UnmarshalText is [ParseKind].
func (k *Kind) UnmarshalText(text []byte) (err error) {
	*k, err = ParseKind(string(text))
	return err
}

// Kind returns the one kind that c belongs to, 0 if it belongs to none.
func (c *Conn) Kind() Kind {
	switch {
	case c.Family == Unix:
		return KindUnix
	case c.Family == Inet && c.Type == Stream:
		return KindTCP4
	case c.Family == Inet && c.Type == Datagram:
		return KindUDP4
	case c.Family == Inet6 && c.Type == Stream:
		return KindTCP6
	case c.Family == Inet6 && c.Type == Datagram:
		return KindUDP6
	}
	return 0
}
