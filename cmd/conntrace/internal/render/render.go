// Package render writes connections and events the way conntrace shows them:
// JSON, CSV, a table, and a line of text an event.
//
// Everything appends to a buffer of the caller's, so that a stream of events is
// written without garbage. What processes and paths are called is chosen by
// whoever runs them: no byte of it reaches the output unquoted.
package render

import "github.com/conntrace/conntrace/pkg/conn"

// nobody stands in for a process of which nothing is known.
var nobody conn.Process

// process returns what is known of the process that holds c.
func process(c *conn.Conn) *conn.Process {
	if c.Process == nil {
		return &nobody
	}
	return c.Process
}

// user returns the user that the process runs as or, where that is not known,
// the one that owns the socket. They differ only in processes that changed their
// user with the socket open.
func user(c *conn.Conn) (uid uint32, known bool) {
	if p := process(c); p.HasUID {
		return p.UID, true
	}
	return c.UID, c.Known.Has(conn.KnownUID)
}

// proto returns tcp, udp or unix; "" for any other socket.
func proto(c *conn.Conn) string {
	switch k := c.Kind(); {
	case k&conn.KindTCP != 0:
		return "tcp"
	case k&conn.KindUDP != 0:
		return "udp"
	case k&conn.KindUnix != 0:
		return "unix"
	}
	return ""
}
