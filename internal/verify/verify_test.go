package verify

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

const home = 4026531840

// row is a held connection; the cookie tells its addresses too.
func row(cookie uint64, status conn.Status) conn.Conn {
	at := func(port uint16) conn.Addr {
		return conn.AddrFrom(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	}
	return conn.Conn{
		FD: 3, Family: conn.Inet, Type: conn.Stream, Laddr: at(uint16(cookie)), Raddr: at(80), Status: status, PID: 100,
		Known: conn.KnownCookie | conn.KnownInode | conn.KnownNetNS, NetNS: home, Inode: 1000 + cookie, Cookie: cookie,
	}
}

func orphan(cookie uint64, status conn.Status) conn.Conn {
	c := row(cookie, status)
	c.Inode, c.PID, c.FD = 0, 0, -1
	return c
}

func with(c conn.Conn, change func(*conn.Conn)) conn.Conn {
	change(&c)
	return c
}

func look(table, kernel []conn.Conn) *Look {
	return &Look{Before: table, Kernel: kernel, After: table, Namespaces: []uint32{home}}
}

// TestDifferences holds the two tables against each other, twice without a change.
func TestDifferences(t *testing.T) {
	const established, closeWait = conn.StatusEstablished, conn.StatusCloseWait
	elsewhere := with(row(1, established), func(c *conn.Conn) { c.NetNS = home + 1 })
	for _, tt := range []struct {
		name          string
		table, kernel []conn.Conn
		owners        bool
		want          Kind // "": they agree
		says          string
	}{
		{name: "nothing"},
		{name: "equal", table: []conn.Conn{row(1, established), row(2, conn.StatusListen)}, kernel: []conn.Conn{row(2, conn.StatusListen), row(1, established)}},
		{name: "missing", kernel: []conn.Conn{row(1, established)}, want: Missing, says: "ESTABLISHED in the kernel, not in the table"},
		{name: "orphan missing", kernel: []conn.Conn{orphan(1, conn.StatusLastAck)}, want: Missing},
		{name: "not accepted and missing", kernel: []conn.Conn{orphan(1, established)}, want: Missing},
		{name: "extra", table: []conn.Conn{row(1, established)}, want: Extra, says: "ESTABLISHED in the table, not in the kernel"},
		{name: "status", table: []conn.Conn{row(1, established)}, kernel: []conn.Conn{row(1, closeWait)}, want: Status, says: "ESTABLISHED in the table, CLOSE_WAIT in the kernel"},
		{
			name: "address", table: []conn.Conn{row(1, established)},
			kernel: []conn.Conn{with(row(2, established), func(c *conn.Conn) { c.Cookie = 1 })},
			want:   Address, says: "127.0.0.1:1 127.0.0.1:80 in the table",
		},
		{
			name: "owner", table: []conn.Conn{row(1, established)},
			kernel: []conn.Conn{with(row(1, established), func(c *conn.Conn) { c.PID = 200 })},
			owners: true, want: Owner, says: "process 100, descriptor 3 in the table; process 200, descriptor 3 in the kernel",
		},
		{
			name: "owner not asked for", table: []conn.Conn{row(1, established)},
			kernel: []conn.Conn{with(row(1, established), func(c *conn.Conn) { c.PID, c.FD = 200, 5 })},
		},
		{name: "TIME_WAIT", kernel: []conn.Conn{orphan(1, conn.StatusTimeWait)}},
		{name: "old TIME_WAIT", table: []conn.Conn{orphan(1, conn.StatusTimeWait)}},
		{name: "TIME_WAIT's FIN_WAIT2", kernel: []conn.Conn{orphan(1, conn.StatusFinWait2)}},
		{name: "that has gone on", table: []conn.Conn{orphan(1, conn.StatusFinWait2)}, kernel: []conn.Conn{orphan(1, conn.StatusTimeWait)}},
		{name: "FIN_WAIT2 that is held", kernel: []conn.Conn{row(1, conn.StatusFinWait2)}, want: Missing},
		{name: "a request", kernel: []conn.Conn{orphan(1, conn.StatusSynRecv)}},
		{name: "an attempt", kernel: []conn.Conn{row(1, conn.StatusSynSent)}},
		{name: "an attempt that has ended", table: []conn.Conn{row(1, conn.StatusSynSent)}, want: Extra},
		{name: "of a namespace that was not read", table: []conn.Conn{elsewhere}},
		{name: "without a cookie", table: []conn.Conn{with(row(1, established), func(c *conn.Conn) { c.Known = 0 })}},
	} {
		c := Checker{Owners: tt.owners}
		if got := c.Check(look(tt.table, tt.kernel)); got != nil {
			t.Errorf("%s: the first look alone tells %v", tt.name, got)
		}
		if pending := c.Pending(); pending != 0 != (tt.want != "") {
			t.Errorf("%s: %d pending", tt.name, pending)
		}
		got := c.Check(look(tt.table, tt.kernel))
		if tt.want == "" {
			if got != nil || c.Lasting != 0 {
				t.Errorf("%s: %v", tt.name, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Kind != tt.want || c.Lasting != 1 || !strings.Contains(got[0].String(), tt.says) {
			t.Errorf("%s: %v, want %s %q", tt.name, got, tt.want, tt.says)
			continue
		}
		if got := c.Check(look(tt.table, tt.kernel)); got != nil || c.Lasting != 1 || c.Transient != 0 || c.Pending() != 0 {
			t.Errorf("%s: told again: %v; %d lasting, %d transient", tt.name, got, c.Lasting, c.Transient)
		}
	}
}

// TestChanging: what changes while it is looked at differs for a look, not for two.
func TestChanging(t *testing.T) {
	const established, closeWait, lastAck = conn.StatusEstablished, conn.StatusCloseWait, conn.StatusLastAck
	type rows = []conn.Conn
	for _, tt := range []struct {
		name          string
		before        rows
		kernel, after rows
		differs       bool
	}{
		{"opened before the scan", nil, rows{row(1, established)}, rows{row(1, established)}, false},
		{"opened after it", nil, nil, rows{row(1, established)}, false},
		{"closed before it", rows{row(1, established)}, nil, nil, false},
		{"closed after it", rows{row(1, established)}, rows{row(1, established)}, nil, false},
		{"changed before it", rows{row(1, established)}, rows{row(1, closeWait)}, rows{row(1, closeWait)}, false},
		{"changed after it", rows{row(1, established)}, rows{row(1, established)}, rows{row(1, closeWait)}, false},
		{"changed before and after", rows{row(1, established)}, rows{row(1, closeWait)}, rows{row(1, lastAck)}, true},
		{"came and went", nil, rows{row(1, established)}, nil, true},
		{"overlooked by the scan", rows{row(1, established)}, nil, rows{row(1, established)}, true},
	} {
		var c Checker
		c.Check(&Look{Before: tt.before, Kernel: tt.kernel, After: tt.after, Namespaces: []uint32{home}})
		if c.Pending() != 0 != tt.differs {
			t.Errorf("%s: %d pending", tt.name, c.Pending())
		}
		if got := c.Check(look(tt.after, tt.after)); got != nil || c.Lasting != 0 || c.Pending() != 0 {
			t.Errorf("%s: lasts: %v", tt.name, got)
		}
		if c.Transient != 0 != tt.differs {
			t.Errorf("%s: %d transient", tt.name, c.Transient)
		}
	}
}

// TestAnotherDifference: a socket that differs in every look, but each time in
// another way, is one that changes.
func TestAnotherDifference(t *testing.T) {
	var c Checker
	for _, status := range []conn.Status{conn.StatusEstablished, conn.StatusFinWait1, conn.StatusFinWait2} {
		if got := c.Check(look(nil, []conn.Conn{row(1, status)})); got != nil {
			t.Errorf("%v: %v", status, got)
		}
	}
	if c.Transient != 2 || c.Pending() != 1 || c.Looks != 3 || c.Rows != 3 {
		t.Errorf("%+v", c)
	}
}

// TestSettle: a difference counts once it has lasted for long enough, and by then
// the time begins anew if it was another one.
func TestSettle(t *testing.T) {
	c := Checker{Settle: 2 * time.Second}
	at := time.Unix(1000, 0)
	for i, step := range []struct {
		after  time.Duration
		status conn.Status
		lasts  int
	}{
		{0, conn.StatusEstablished, 0},
		{time.Second, conn.StatusEstablished, 0},
		{time.Second, conn.StatusCloseWait, 0},
		{time.Second, conn.StatusCloseWait, 0},
		{time.Second, conn.StatusCloseWait, 1},
		{time.Second, conn.StatusCloseWait, 0},
	} {
		at = at.Add(step.after)
		l := look(nil, []conn.Conn{row(1, step.status)})
		l.Time = at
		if got := c.Check(l); len(got) != step.lasts {
			t.Errorf("look %d: %v", i, got)
		}
	}
	if c.Lasting != 1 || c.Transient != 1 || c.Pending() != 0 {
		t.Errorf("%+v", c)
	}
}

// TestExcuse: what differs while the table is repaired does not count, what differs
// afterwards does.
func TestExcuse(t *testing.T) {
	var c Checker
	wrong := look(nil, []conn.Conn{row(1, conn.StatusEstablished)})
	for range 2 {
		c.Check(wrong)
		c.Excuse()
	}
	if c.Lasting != 0 || c.Transient != 2 {
		t.Errorf("while it is repaired: %d lasting, %d transient", c.Lasting, c.Transient)
	}
	c.Check(wrong)
	if got := c.Check(wrong); len(got) != 1 {
		t.Errorf("afterwards: %v", got)
	}
	c.Excuse() // does not make it new
	if got := c.Check(wrong); got != nil || c.Lasting != 1 || c.Transient != 2 {
		t.Errorf("told again: %v; %d lasting, %d transient", got, c.Lasting, c.Transient)
	}
}
