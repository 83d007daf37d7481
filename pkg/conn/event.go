package conn

import (
	"syscall"
	"time"
)

// An Event is something that happened to a TCP socket. Its Conn describes the
// socket at that moment. Conn.PID and Conn.Process are the owner of the socket,
// that is who listened, connected or accepted, never whoever happened to run.
type Event struct {
	Time time.Time // wall clock
	Type EventType
	Conn
	Direction Direction

	// Reconciled says that the event was not seen as it happened but found by
	// comparing the table with the kernel's, after a gap. Its Time is then when
	// it was found.
	Reconciled bool

	// EventFail: why the attempt failed. ECANCELED says that the process closed the
	// socket, or was killed, before there was an answer; 0: unknown.
	Error     syscall.Errno
	Lost      uint64 // EventGap: how many events were lost
	Close     *Close // EventClose of a connection: how it went; nil: unknown
	OldStatus Status // EventState: the state before; that after is Status
}

// Close is what is known about a connection once it has ended.
type Close struct {
	Duration      time.Duration // from established to closed; -1: unknown, as it was established before the start
	BytesSent     uint64        // payload sent, each byte once
	BytesReceived uint64        // payload received in order
	Retransmits   uint32        // segments sent again (tcp_sock.total_retrans)
	RTT           time.Duration // smoothed round-trip time, in microseconds; -1: never measured
	Reason        Reason        // how it ended
	By            Side          // who began to end it: sent the first FIN, or the RST; 0: nobody, or unknown
	Unaccepted    bool          // inbound: no process had accepted it
}

// An EventType says what happened.
type EventType uint8

// The types of events.
const (
	EventSeed    EventType = 1 + iota // the socket existed before the stream began
	EventListen                       // listen(2)
	EventConnect                      // an outbound connection was established
	EventAccept                       // an inbound connection was accepted by a process; its Status is CLOSE if it had ended by then, and its close is told already
	EventFail                         // an outbound connection could not be established
	EventClose                        // a connection or a listener came to its end
	EventGap                          // events were lost; Lost says how many
	EventState                        // a socket went from one TCP state to another; only for those who ask for it
)

var eventNames = [...]string{"unknown", "seed", "listen", "connect", "accept", "fail", "close", "gap", "state"}

// EventNames returns the names of all event types.
func EventNames() []string { return append([]string(nil), eventNames[1:]...) }

// String returns seed, listen, connect, accept, fail, close, gap or state.
func (t EventType) String() string { return name(eventNames[:], t) }

// MarshalText returns [EventType.String].
func (t EventType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// ParseEventType returns the type named s, in any case. The error of an unknown
// name lists the valid ones.
func ParseEventType(s string) (EventType, error) {
	return parse[EventType]("event", eventNames[:], 1, s)
}
