package fallback

import (
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// tcpInfo is what is wanted of struct tcp_info (include/uapi/linux/tcp.h).
type tcpInfo struct {
	retransmits   uint8  // of what is not acknowledged
	probes        uint8  // that were not answered
	unacked       uint32 // segments
	rtt           uint32 // us, smoothed
	minRTT        uint32 // us
	totalRetrans  uint32
	bytesAcked    uint64 // payload, and a byte each for SYN and FIN (tcp_snd_una_update)
	bytesReceived uint64 // payload, and a byte for FIN (tcp_rcv_nxt_update)
	dataSegsIn    uint32
	bytesSent     uint64 // payload, with what was sent again
	bytesRetrans  uint64
}

// sizeofTCPInfo is what kernels since 4.19 give at least.
const sizeofTCPInfo = 216

// decodeTCPInfo reads a struct tcp_info; ok is false if it is of an older kernel.
func decodeTCPInfo(b []byte) (t tcpInfo, ok bool) {
	if len(b) < sizeofTCPInfo {
		return t, false
	}
	return tcpInfo{
		retransmits:   b[2],
		probes:        b[3],
		unacked:       hostEndian.Uint32(b[24:]),
		rtt:           hostEndian.Uint32(b[68:]),
		totalRetrans:  hostEndian.Uint32(b[100:]),
		bytesAcked:    hostEndian.Uint64(b[120:]),
		bytesReceived: hostEndian.Uint64(b[128:]),
		minRTT:        hostEndian.Uint32(b[148:]),
		dataSegsIn:    hostEndian.Uint32(b[152:]),
		bytesSent:     hostEndian.Uint64(b[200:]),
		bytesRetrans:  hostEndian.Uint64(b[208:]),
	}, true
}

// infoOf returns the tcp_info among the attributes of a struct inet_diag_msg.
func infoOf(record []byte) (t tcpInfo, ok bool) {
	if len(record) < sizeofInetDiagMsg {
		return t, false
	}
	for attrs := record[sizeofInetDiagMsg:]; len(attrs) > 0; {
		kind, value, rest, err := nextAttr(attrs)
		if err != nil {
			return t, false
		}
		if kind == attrInetInfo {
			return decodeTCPInfo(value)
		}
		attrs = rest
	}
	return t, false
}

// controls returns how many bytes were acknowledged that are no payload: the SYN of
// an end that connected, the FIN of one that was shut down.
func (t *tcpInfo) controls() uint64 { return t.bytesAcked - (t.bytesSent - t.bytesRetrans) }

// openedBy says who opened a connection that was not shut down from here yet: only
// whoever connects has sent a SYN after which bytes are counted, as the socket of
// who accepts comes to be when its SYN has been acknowledged.
func (t *tcpInfo) openedBy() conn.Direction {
	switch {
	case t.unacked > 0:
	case t.controls() == 1:
		return conn.Outbound
	case t.controls() == 0:
		return conn.Inbound
	}
	return 0
}

// openedByAtEnd is the same for a connection that has ended.
func (t *tcpInfo) openedByAtEnd() conn.Direction {
	switch {
	case t.cleared():
	case t.controls() == 2:
		return conn.Outbound
	case t.controls() == 0:
		return conn.Inbound
	}
	return 0
}

// established reports whether there was a connection.
func (t *tcpInfo) established() bool {
	return t.bytesAcked > 0 || t.bytesReceived > 0 || t.rtt > 0 || t.minRTT != ^uint32(0)
}

// cleared reports whether the counts were lost, as with SO_LINGER of 0 seconds or
// where a connect has failed (tcp_disconnect). What remains is the least RTT.
func (t *tcpInfo) cleared() bool {
	return t.bytesAcked == 0 && t.bytesReceived == 0 && t.rtt == 0
}

// atEnd returns how a connection went that direction tells who has opened; nil if
// the counts do not tell. peerFIN reports whether the peer had shut it down, of one
// that was shut down from here. Where a connection was reset after the peer had shut it
// down, that counts as a byte received.
func (t *tcpInfo) atEnd(direction conn.Direction, peerFIN func() bool) *conn.Close {
	if t.cleared() || direction == 0 {
		return nil
	}
	c := &conn.Close{
		Duration:      -1,
		BytesSent:     t.bytesSent - t.bytesRetrans,
		BytesReceived: t.bytesReceived,
		Retransmits:   t.totalRetrans,
		RTT:           -1,
	}
	if t.rtt > 0 {
		c.RTT = time.Duration(t.rtt) * time.Microsecond
	}
	fins := t.controls()
	if direction == conn.Outbound {
		fins-- // its SYN
	}
	shut := fins == 1
	switch {
	case shut:
		c.Reason = conn.ReasonFin
	case fins == 0 && t.retransmits == 0 && t.probes == 0:
		c.Reason = conn.ReasonReset
	}
	switch {
	case t.dataSegsIn == 0:
		c.BytesReceived = 0
	case c.BytesReceived > 0 && shut && peerFIN():
		c.BytesReceived--
	}
	return c
}
