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
	if s != nil {
		e.Direction = s.direction
		if owner == nil {
			owner = s.owner
		}
	}
	switch {
	case r.owned != nil:
		if conn.Status(h.Newstate) == conn.StatusSynRecv && conn.Status(h.Oldstate) == conn.StatusListen {
			e.Direction = conn.Inbound // inet_csk_clone_lock()
		}
		fillOwned(&e.Conn, r.owned, owner)
		if d := directionOf(bpf.TrackerRole(r.owned.Owner.Role)); d != 0 {
			e.Direction = d
		}
		if s != nil && owner == s.owner && e.FD < 0 {
			e.FD = s.ownerFD
		}
	case r.socket != nil: // a listener's child
		fillSocket(&e.Conn, r.socket)
		e.Direction = conn.Inbound
	default:
		return false
	}
	e.Status = conn.Status(h.Newstate)
	return true
}
