// Package verify compares a table of TCP sockets that events keep current with
// the kernel's own.
//
// The kernel's table cannot be read in one moment, and sockets change meanwhile. So
// the other table is taken before and after (a [Look]), and a socket differs only if
// what the kernel's table says of it is in neither. Under load that happens too, to
// sockets that change twice in a look, or while the task that tells of a change has to
// wait for a CPU. So a difference counts once it has lasted.
package verify

import (
	"fmt"
	"slices"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A Look is what both tables say at about the same time.
type Look struct {
	Time   time.Time   // of the look, to tell how long a difference lasts
	Before []conn.Conn // the table, taken before the kernel's was read
	Kernel []conn.Conn // the kernel's sockets; cookies must be known
	After  []conn.Conn // the table, taken after

	// Namespaces are the network namespaces that Kernel has all sockets of. Those of
	// others are not compared.
	Namespaces []uint32
}

// A Kind says in what the tables differ.
type Kind string

// The kinds of differences.
const (
	Missing Kind = "missing" // the table lacks a socket
	Extra   Kind = "extra"   // the table has a socket that does not exist
	Status  Kind = "status"  // the TCP state
	Address Kind = "address" // an address
	Owner   Kind = "owner"   // the process, or its descriptor
)

// A Difference is a socket of which the tables say different things.
type Difference struct {
	Kind   Kind
	Table  conn.Conn // what the table says; the zero Conn if it is Missing
	Kernel conn.Conn // what the kernel says; the zero Conn if it is Extra
}

// String describes d in a line.
func (d *Difference) String() string {
	c := &d.Kernel
	if d.Kind == Extra {
		c = &d.Table
	}
	s := fmt.Sprintf("%-7s %s", d.Kind, c.Laddr)
	if c.Raddr.IsValid() {
		s += " " + c.Raddr.String()
	}
	s += fmt.Sprintf(" (cookie %d, namespace %d): ", c.Cookie, c.NetNS)
	switch d.Kind {
	case Missing:
		return s + fmt.Sprintf("%v in the kernel, not in the table", d.Kernel.Status)
	case Extra:
		return s + fmt.Sprintf("%v in the table, not in the kernel", d.Table.Status)
	case Status:
		return s + fmt.Sprintf("%v in the table, %v in the kernel", d.Table.Status, d.Kernel.Status)
	case Address:
		return s + fmt.Sprintf("%s %s in the table", d.Table.Laddr, d.Table.Raddr)
	}
	return s + fmt.Sprintf("process %d, descriptor %d in the table; process %d, descriptor %d in the kernel",
		d.Table.PID, d.Table.FD, d.Kernel.PID, d.Kernel.FD)
}

// A Checker compares look after look.
type Checker struct {
	// Settle is how long a difference must last to count; 0 is until the next look.
	Settle time.Duration

	// Owners makes it compare PIDs and descriptors as well.
	Owners bool

	Looks     int    // compared
	Rows      uint64 // of the kernel that were compared, over all looks
	Transient uint64 // differences that did not last
	Lasting   uint64 // differences that lasted

	pending             map[uint64]*pending // by cookie
	before, kernel, now map[uint64]*conn.Conn
}

// A pending is a difference of the last look.
type pending struct {
	Difference
	since time.Time
	told  bool // it has lasted, and was returned
}

// Check compares the tables and returns the differences that have lasted and were
// not returned yet.
func (c *Checker) Check(l *Look) (lasting []Difference) {
	c.before, c.now, c.kernel = index(c.before, l.Before, l), index(c.now, l.After, l), index(c.kernel, l.Kernel, l)
	c.Looks++
	c.Rows += uint64(len(c.kernel))

	found := make(map[uint64]*pending)
	note := func(cookie uint64, kind Kind) {
		p := &pending{Difference: Difference{Kind: kind}, since: l.Time}
		if t := c.now[cookie]; t != nil {
			p.Table = *t
		}
		if k := c.kernel[cookie]; k != nil {
			p.Kernel = *k
		}
		found[cookie] = p
	}
	for cookie, k := range c.kernel {
		// The table that was taken last is nearer to what shall be; the other excuses it.
		if kind := c.differ(c.now[cookie], k); kind != "" && c.differ(c.before[cookie], k) != "" {
			note(cookie, kind)
		}
	}
	for cookie, t := range c.now {
		if c.kernel[cookie] == nil && c.before[cookie] != nil && !untold(t) {
			note(cookie, Extra)
		}
	}

	for cookie, old := range c.pending {
		p := found[cookie]
		switch {
		case p == nil || !same(&old.Difference, &p.Difference):
			if !old.told {
				c.Transient++
			}
		case old.told:
			p.told = true
		default:
			p.since = old.since
			if p.told = l.Time.Sub(p.since) >= c.Settle; p.told {
				c.Lasting++
				lasting = append(lasting, p.Difference)
			}
		}
	}
	c.pending = found
	return lasting
}

// Pending returns how many differences of the last look would count if they lasted.
func (c *Checker) Pending() (n int) {
	for _, p := range c.pending {
		if !p.told {
			n++
		}
	}
	return n
}

// Excuse counts the differences of the last look as transient, whatever the next
// one has: events were lost, and the table is being repaired.
func (c *Checker) Excuse() {
	c.Transient += uint64(c.Pending())
	for cookie, p := range c.pending {
		if !p.told {
			delete(c.pending, cookie)
		}
	}
}

// index makes dst an index of those rows whose namespace l covers.
func index(dst map[uint64]*conn.Conn, rows []conn.Conn, l *Look) map[uint64]*conn.Conn {
	if dst == nil {
		dst = make(map[uint64]*conn.Conn, len(rows))
	}
	clear(dst)
	for i := range rows {
		if c := &rows[i]; c.Known.Has(conn.KnownCookie) && slices.Contains(l.Namespaces, c.NetNS) {
			dst[c.Cookie] = c
		}
	}
	return dst
}

// differ says in what the row t of the table, nil if there is none, differs from
// the kernel's row k; "" if it does not.
func (c *Checker) differ(t, k *conn.Conn) Kind {
	switch {
	case t == nil:
		if untold(k) || k.Status == conn.StatusSynSent {
			return ""
		}
		return Missing
	case untold(t):
		return ""
	case t.Status != k.Status:
		return Status
	case t.Laddr != k.Laddr || t.Raddr != k.Raddr:
		return Address
	case c.Owners && (t.PID != k.PID || t.FD != k.FD):
		return Owner
	}
	return ""
}

// untold reports whether c is what comes and goes without an event: a socket in
// TIME_WAIT, with which the kernel replaces one without a process in FIN_WAIT2 already
// (tcp_time_wait()), and a request that is not established yet.
func untold(c *conn.Conn) bool {
	switch c.Status {
	case conn.StatusTimeWait:
		return true
	case conn.StatusFinWait2, conn.StatusSynRecv:
		return c.Inode == 0
	}
	return false
}

// same reports whether nothing has changed from a to b.
func same(a, b *Difference) bool {
	return a.Kind == b.Kind && sameRow(&a.Table, &b.Table) && sameRow(&a.Kernel, &b.Kernel)
}

func sameRow(a, b *conn.Conn) bool {
	return a.Status == b.Status && a.Laddr == b.Laddr && a.Raddr == b.Raddr && a.PID == b.PID && a.FD == b.FD
}
