package tracker

import (
	"time"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/pkg/conn"
)

// state makes e the event of the change of state that r tells of, and returns
// false if it tells of none. It must be called before apply, which may take the
// socket out of the table. owner is the record's owner, nil if it has none.
func (t *table) state(r record, owner *conn.Process, at time.Time, e *conn.Event) bool {
	h := r.header
	if h.Oldstate == h.Newstate { // accept(2) changes none
		return false
	}
	*e = conn.Event{Time: at, Type: conn.EventState, OldStatus: conn.Status(h.Oldstate)}
	s := t.sockets[h.Cookie]
	switch {
	case r.socket != nil:
		fd := r.socket.Fd
		if s != nil {
			e.Direction = s.direction
			if owner == nil {
				owner, fd = s.owner, s.ownerFD
			}
		}
		if d := directionOf(bpf.TrackerRole(r.socket.Owner.Role)); d != 0 {
			e.Direction = d
		} else if bpf.TrackerEventType(h.Type) == bpf.TrackerEventTypeEVENT_CHILD {
			e.Direction = conn.Inbound
		}
		e.Conn = owned(r.row(), owner, fd)
	case s != nil:
		row := s.row
		row.PID, row.Process = 0, nil
		e.Conn, e.Direction = owned(row, s.owner, s.ownerFD), s.direction
	default: // such as one that has just begun to connect
		e.Conn = conn.Conn{
			FD: -1, Family: conn.Family(h.Family), Type: conn.Stream,
			Known: conn.KnownNetNS | conn.KnownCookie, NetNS: h.Netns, Cookie: h.Cookie,
		}
	}
	e.Status = conn.Status(h.Newstate)
	return true
}
