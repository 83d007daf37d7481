package render

import (
	"bytes"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/conntrace/conntrace/pkg/conn"
)

// Text writes events for people, a line each.
type Text struct {
	color   bool
	unicode bool
	clock   clock
}

// NewText returns a writer of events that colours their names and draws arrows
// beyond ASCII if it may.
func NewText(color, unicode bool) *Text {
	return &Text{color: color, unicode: unicode, clock: clock{layout: "15:04:05."}}
}

// Widths of the columns. They hold an IPv4 address with its port and most
// processes; what is wider, as IPv6 can be, pushes its own line to the right.
const (
	eventWidth   = len("connect")
	processWidth = len("postgres[123456]")
	addrWidth    = len("192.168.100.100:54321")
)

// colors are the SGR parameters by event type: quiet for what was there before,
// loud for what needs a look.
var colors = [...]string{
	conn.EventSeed:    "2",    // dim
	conn.EventListen:  "35",   // magenta
	conn.EventConnect: "32",   // green
	conn.EventAccept:  "36",   // cyan
	conn.EventFail:    "31",   // red
	conn.EventClose:   "33",   // yellow
	conn.EventGap:     "1;31", // bold red
	conn.EventState:   "2",    // dim
}

// AppendHeader appends the line above the events.
func (t *Text) AppendHeader(dst []byte) []byte {
	dst = append(dst, "TIME         EVENT   "...)
	dst = appendPadded(dst, "PROCESS", processWidth+len(" "))
	dst = appendPadded(dst, "LOCAL", addrWidth+len(" ")+t.arrowWidth())
	return append(dst, "REMOTE\n"...)
}

// AppendEvent appends a line.
func (t *Text) AppendEvent(dst []byte, ev *conn.Event) []byte {
	dst = t.clock.append(dst, ev.Time.Local())
	dst = appendFraction(dst, ev.Time.Nanosecond()/int(time.Millisecond), 3)
	dst = append(dst, ' ')
	dst = t.appendType(dst, ev.Type)
	if ev.Type == conn.EventGap {
		dst = strconv.AppendUint(dst, ev.Lost, 10)
		return append(dst, " events were lost here\n"...)
	}

	start := len(dst)
	dst = appendProcess(dst, &ev.Conn)
	dst = pad(dst, start, processWidth)
	dst = append(dst, ' ')
	dst = t.appendAddrs(dst, ev)

	switch ev.Type {
	case conn.EventSeed:
		dst = append(dst, "  "...)
		dst = append(dst, ev.Status.String()...)
	case conn.EventFail:
		dst = appendError(dst, ev)
	case conn.EventState:
		dst = t.appendChange(dst, ev)
	case conn.EventClose:
		dst = t.appendClose(dst, ev.Close)
	}
	if ev.Reconciled {
		dst = append(dst, "  (reconciled)"...)
	}
	return append(bytes.TrimRight(dst, " "), '\n')
}

func (t *Text) appendType(dst []byte, typ conn.EventType) []byte {
	color := t.color && int(typ) < len(colors) && colors[typ] != ""
	if color {
		dst = append(dst, "\x1b["...)
		dst = append(dst, colors[typ]...)
		dst = append(dst, 'm')
	}
	name := typ.String()
	dst = append(dst, name...)
	if color {
		dst = append(dst, "\x1b[0m"...)
	}
	return appendSpaces(dst, eventWidth-len(name)+len(" "))
}

// appendProcess appends name[pid], with "?" for a name that is not known.
func appendProcess(dst []byte, c *conn.Conn) []byte {
	if c.PID == 0 {
		return append(dst, '-')
	}
	if comm := process(c).Comm; comm != "" {
		dst = appendVisible(dst, comm)
	} else {
		dst = append(dst, '?')
	}
	dst = append(dst, '[')
	dst = strconv.AppendInt(dst, int64(c.PID), 10)
	return append(dst, ']')
}

// appendAddrs appends both ends with an arrow from the one that connected to the
// other, padded to where the rest of a line starts.
func (t *Text) appendAddrs(dst []byte, ev *conn.Event) []byte {
	start := len(dst)
	if ev.Laddr.IsValid() {
		dst = ev.Laddr.Append(dst)
	} else {
		dst = append(dst, '-') // an attempt can fail before it has a port
	}
	dst = pad(dst, start, addrWidth)
	dst = append(dst, ' ')
	arrow := ""
	if ev.Raddr.IsValid() {
		arrow = t.arrow(ev.Direction)
	}
	dst = appendPadded(dst, arrow, t.arrowWidth())
	start = len(dst)
	return pad(ev.Raddr.Append(dst), start, addrWidth)
}

func (t *Text) arrow(d conn.Direction) string {
	switch {
	case t.unicode && d == conn.Outbound:
		return "→"
	case t.unicode && d == conn.Inbound:
		return "←"
	case t.unicode:
		return "─"
	case d == conn.Outbound:
		return "->"
	case d == conn.Inbound:
		return "<-"
	}
	return "--"
}

// arrowWidth returns the width of an arrow and the space behind it.
func (t *Text) arrowWidth() int { return utf8.RuneCountInString(t.arrow(0)) + len(" ") }

// appendChange appends the state before and the one after.
func (t *Text) appendChange(dst []byte, ev *conn.Event) []byte {
	dst = append(dst, "  "...)
	dst = append(dst, ev.OldStatus.String()...)
	dst = append(dst, ' ')
	dst = append(dst, t.arrow(conn.Outbound)...)
	dst = append(dst, ' ')
	return append(dst, ev.Status.String()...)
}

func appendError(dst []byte, ev *conn.Event) []byte {
	if ev.Error == 0 {
		return append(dst, "  cause unknown"...)
	}
	dst = append(dst, "  "...)
	if name := errnoName(ev.Error); name != "" {
		dst = append(dst, name...)
		dst = append(dst, ": "...)
	}
	return append(dst, ev.Error.Error()...)
}

// appendClose appends how a connection went: its duration, what it sent and
// received, and how it ended.
func (t *Text) appendClose(dst []byte, c *conn.Close) []byte {
	if c == nil {
		return dst
	}
	dst = append(dst, "  "...)
	start := len(dst)
	if c.Duration >= 0 {
		dst = appendDuration(dst, c.Duration)
	} else {
		dst = append(dst, '-')
	}
	dst = pad(dst, start, len("999.9ms"))
	dst = append(dst, " out "...)
	start = len(dst)
	dst = appendBytes(dst, c.BytesSent)
	dst = pad(dst, start, len("1023B"))
	dst = append(dst, " in "...)
	start = len(dst)
	dst = appendBytes(dst, c.BytesReceived)
	dst = pad(dst, start, len("1023B"))
	if c.Reason != 0 {
		dst = append(dst, ' ')
		dst = append(dst, c.Reason.String()...)
		switch c.By {
		case conn.Local:
			dst = append(dst, " by us"...)
		case conn.Remote:
			dst = append(dst, " by peer"...)
		}
	}
	if c.Unaccepted {
		dst = append(dst, ", never accepted"...)
	}
	if c.Retransmits > 0 {
		dst = append(dst, ", "...)
		dst = strconv.AppendUint(dst, uint64(c.Retransmits), 10)
		dst = append(dst, " retransmits"...)
	}
	return dst
}

// appendPadded appends s and spaces up to width.
func appendPadded(dst []byte, s string, width int) []byte {
	start := len(dst)
	return pad(append(dst, s...), start, width)
}

// pad fills what was appended since start with spaces up to width.
func pad(dst []byte, start, width int) []byte {
	return appendSpaces(dst, width-utf8.RuneCount(dst[start:]))
}

// appendSpaces appends n spaces, none if n is negative.
func appendSpaces(dst []byte, n int) []byte {
	for range n {
		dst = append(dst, ' ')
	}
	return dst
}
