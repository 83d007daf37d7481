package render

import (
	"strconv"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// JSON writes events, one object a line. Every event of a type has the same keys
// in the same order; what is not known is null.
type JSON struct {
	clock clock
}

// NewJSON returns a writer of events.
func NewJSON() *JSON { return &JSON{clock{layout: "2006-01-02T15:04:05."}} }

// AppendHeader appends nothing: JSON has no header.
func (j *JSON) AppendHeader(dst []byte) []byte { return dst }

// AppendEvent appends a line.
func (j *JSON) AppendEvent(dst []byte, ev *conn.Event) []byte {
	p := process(&ev.Conn)
	uid, hasUID := user(&ev.Conn)

	dst = append(dst, `{"time":"`...)
	dst = j.clock.append(dst, ev.Time.UTC())
	dst = appendFraction(dst, ev.Time.Nanosecond(), 9)
	dst = append(dst, `Z","event":"`...)
	dst = append(dst, ev.Type.String()...)
	dst = append(dst, `","proto":"tcp"`...)
	dst = appendNumber(dst, `,"family":`, uint64(ev.Family), ev.Family != 0)
	dst = appendAddr(dst, `,"laddr":`, ev.Laddr)
	dst = appendAddr(dst, `,"raddr":`, ev.Raddr)
	dst = appendName(dst, `,"status":`, ev.Status.String(), ev.Status != conn.StatusNone)
	dst = appendName(dst, `,"direction":`, ev.Direction.String(), ev.Direction != 0)
	dst = appendNumber(dst, `,"pid":`, uint64(ev.PID), ev.PID != 0)
	dst = appendString(dst, `,"comm":`, p.Comm)
	dst = appendString(dst, `,"exe":`, p.Executable)
	dst = appendNumber(dst, `,"uid":`, uint64(uid), hasUID)
	dst = appendNumber(dst, `,"fd":`, uint64(ev.FD), ev.FD >= 0 && ev.PID != 0)
	dst = appendNumber(dst, `,"inode":`, ev.Inode, ev.Known.Has(conn.KnownInode))
	dst = appendNumber(dst, `,"cookie":`, ev.Cookie, ev.Known.Has(conn.KnownCookie))
	dst = appendNumber(dst, `,"netns":`, uint64(ev.NetNS), ev.Known.Has(conn.KnownNetNS))
	dst = appendNumber(dst, `,"cgroup":`, p.Cgroup, p.Cgroup != 0)

	switch ev.Type {
	case conn.EventClose:
		dst = appendClose(dst, ev)
	case conn.EventFail:
		dst = appendString(dst, `,"error":`, errnoName(ev.Error))
	case conn.EventGap:
		dst = appendNumber(dst, `,"lost":`, ev.Lost, true)
	case conn.EventState:
		dst = appendName(dst, `,"old_status":`, ev.OldStatus.String(), true)
	}
	if ev.Reconciled {
		dst = append(dst, `,"reconciled":true`...)
	}
	return append(dst, "}\n"...)
}

func appendClose(dst []byte, ev *conn.Event) []byte {
	c := ev.Close
	known := c != nil
	if !known {
		c = &conn.Close{Duration: -1, RTT: -1}
	}
	dst = appendNumber(dst, `,"duration_ns":`, uint64(c.Duration), c.Duration >= 0)
	dst = appendNumber(dst, `,"bytes_sent":`, c.BytesSent, known)
	dst = appendNumber(dst, `,"bytes_received":`, c.BytesReceived, known)
	dst = appendNumber(dst, `,"retransmits":`, uint64(c.Retransmits), known)
	dst = appendNumber(dst, `,"rtt_us":`, uint64(c.RTT.Microseconds()), c.RTT >= 0)
	dst = appendName(dst, `,"reason":`, c.Reason.String(), c.Reason != 0)
	dst = appendName(dst, `,"closed_by":`, c.By.String(), c.By != 0)
	dst = append(dst, `,"accepted":`...)
	if !known || ev.Direction != conn.Inbound {
		return append(dst, "null"...)
	}
	return strconv.AppendBool(dst, !c.Unaccepted)
}

// AppendConnJSON appends c as an object: psutil's seven fields first, then what
// else is known.
func AppendConnJSON(dst []byte, c *conn.Conn) []byte {
	p := process(c)
	uid, hasUID := user(c)

	dst = append(dst, `{"fd":`...)
	dst = strconv.AppendInt(dst, int64(c.FD), 10)
	dst = append(dst, `,"family":`...)
	dst = strconv.AppendUint(dst, uint64(c.Family), 10)
	dst = append(dst, `,"type":`...)
	dst = strconv.AppendUint(dst, uint64(c.Type), 10)
	dst = appendAddr(dst, `,"laddr":`, c.Laddr)
	dst = appendAddr(dst, `,"raddr":`, c.Raddr)
	dst = appendName(dst, `,"status":`, c.Status.String(), true)
	dst = appendNumber(dst, `,"pid":`, uint64(c.PID), c.PID != 0)

	dst = appendString(dst, `,"proto":`, proto(c))
	dst = appendNumber(dst, `,"inode":`, c.Inode, c.Known.Has(conn.KnownInode))
	dst = appendNumber(dst, `,"cookie":`, c.Cookie, c.Known.Has(conn.KnownCookie))
	dst = appendNumber(dst, `,"uid":`, uint64(uid), hasUID)
	dst = appendNumber(dst, `,"netns":`, uint64(c.NetNS), c.Known.Has(conn.KnownNetNS))
	dst = appendString(dst, `,"comm":`, p.Comm)
	dst = appendString(dst, `,"exe":`, p.Executable)
	dst = append(dst, `,"start":`...)
	if p.Start.IsZero() {
		dst = append(dst, "null"...)
	} else {
		dst = append(dst, '"')
		dst = appendTime(dst, p.Start)
		dst = append(dst, '"')
	}
	dst = appendNumber(dst, `,"cgroup":`, p.Cgroup, p.Cgroup != 0)
	dst = append(dst, `,"holders":`...)
	dst = appendHolders(dst, c)
	return append(dst, '}')
}

func appendHolders(dst []byte, c *conn.Conn) []byte {
	if !c.Known.Has(conn.KnownHolders) {
		return append(dst, "null"...)
	}
	dst = append(dst, '[')
	for i, h := range c.Holders {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"pid":`...)
		dst = strconv.AppendInt(dst, int64(h.PID), 10)
		dst = append(dst, `,"fd":`...)
		dst = strconv.AppendInt(dst, int64(h.FD), 10)
		dst = append(dst, '}')
	}
	return append(dst, ']')
}

func appendAddr(dst []byte, key string, a conn.Addr) []byte {
	dst = append(dst, key...)
	switch {
	case a.IsUnix():
		return appendQuoted(dst, a.Path())
	case a.IsValid():
		dst = append(dst, `{"ip":"`...)
		dst = a.IP().AppendTo(dst)
		dst = append(dst, `","port":`...)
		dst = strconv.AppendUint(dst, uint64(a.Port()), 10)
		return append(dst, '}')
	}
	return append(dst, "null"...)
}

func appendNumber(dst []byte, key string, n uint64, known bool) []byte {
	dst = append(dst, key...)
	if !known {
		return append(dst, "null"...)
	}
	return strconv.AppendUint(dst, n, 10)
}

// appendString appends s, which is not known if it is empty.
func appendString(dst []byte, key, s string) []byte {
	dst = append(dst, key...)
	if s == "" {
		return append(dst, "null"...)
	}
	return appendQuoted(dst, s)
}

// appendName appends a name of ours, in which nothing needs an escape.
func appendName(dst []byte, key, name string, known bool) []byte {
	dst = append(dst, key...)
	if !known {
		return append(dst, "null"...)
	}
	dst = append(dst, '"')
	dst = append(dst, name...)
	return append(dst, '"')
}

// appendTime appends t in UTC as RFC 3339 with nine digits of fraction, so that
// times line up and sort as text.
func appendTime(dst []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000000Z")
}
