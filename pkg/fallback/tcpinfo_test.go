package fallback

import (
	"testing"
	"time"

	"github.com/conntrace/conntrace/pkg/conn"
)

// What the kernel tells of connections at their end, as seen with Linux 6.18: the
// client has sent 10 bytes and the server 7.
func TestTCPInfoAtEnd(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	const unmeasured = ^uint32(0)
	for _, test := range []struct {
		name      string
		info      tcpInfo
		direction conn.Direction // that is known from elsewhere
		peerFIN   func() bool
		told      conn.Direction
		want      *conn.Close
	}{
		{
			"client, closed first", tcpInfo{rtt: 29, minRTT: 13, bytesAcked: 12, bytesReceived: 8, bytesSent: 10, dataSegsIn: 1},
			0, yes, conn.Outbound, &conn.Close{BytesSent: 10, BytesReceived: 7, RTT: 29000, Reason: conn.ReasonFin},
		},
		{
			"server, closed last", tcpInfo{rtt: 26, minRTT: 8, bytesAcked: 8, bytesReceived: 11, bytesSent: 7, dataSegsIn: 1},
			conn.Inbound, yes, 0, &conn.Close{BytesSent: 7, BytesReceived: 10, RTT: 26000, Reason: conn.ReasonFin},
		},
		{
			"the same, direction unknown", tcpInfo{rtt: 26, minRTT: 8, bytesAcked: 8, bytesReceived: 11, bytesSent: 7, dataSegsIn: 1},
			0, yes, 0, nil,
		},
		{
			"the peer has half closed", tcpInfo{rtt: 261, minRTT: 31, bytesAcked: 12, bytesReceived: 7, bytesSent: 10, dataSegsIn: 1},
			0, no, conn.Outbound, &conn.Close{BytesSent: 10, BytesReceived: 7, RTT: 261000, Reason: conn.ReasonFin},
		},
		{
			"server, reset", tcpInfo{rtt: 19, minRTT: 15, bytesAcked: 3, bytesSent: 3},
			0, yes, conn.Inbound, &conn.Close{BytesSent: 3, RTT: 19000, Reason: conn.ReasonReset},
		},
		{
			"client, reset", tcpInfo{rtt: 25, minRTT: 25, bytesAcked: 1, bytesReceived: 3, dataSegsIn: 1},
			conn.Outbound, yes, 0, &conn.Close{BytesReceived: 3, RTT: 25000, Reason: conn.ReasonReset},
		},
		{
			"gone while segments were sent again", tcpInfo{rtt: 25, minRTT: 25, bytesAcked: 4, bytesSent: 20, bytesRetrans: 10, retransmits: 2, totalRetrans: 2, unacked: 2},
			conn.Inbound, yes, 0, &conn.Close{BytesSent: 10, Retransmits: 2, RTT: 25000},
		},
		{"SO_LINGER of 0", tcpInfo{minRTT: 35}, conn.Outbound, yes, 0, nil},
		{"never connected", tcpInfo{minRTT: unmeasured}, conn.Outbound, yes, 0, nil},
	} {
		told := test.info.openedByAtEnd()
		if told != test.told {
			t.Errorf("%s: opened by %v, want %v", test.name, told, test.told)
		}
		if got, want := test.info.established(), test.name != "never connected"; got != want {
			t.Errorf("%s: established %t", test.name, got)
		}
		direction := max(told, test.direction)
		got := test.info.atEnd(direction, test.peerFIN)
		if test.want != nil {
			test.want.Duration = -1
		}
		if (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

func FuzzTCPInfo(f *testing.F) {
	f.Add(make([]byte, sizeofTCPInfo))
	f.Add(append(make([]byte, sizeofInetDiagMsg), 0xe4, 0, 2, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ok := infoOf(b); ok && len(b) < sizeofInetDiagMsg+sizeofTCPInfo {
			t.Errorf("tcp_info in %d bytes", len(b))
		}
		info, ok := decodeTCPInfo(b)
		if ok != (len(b) >= sizeofTCPInfo) {
			t.Errorf("%d bytes: %t", len(b), ok)
		}
		if c := info.atEnd(conn.Outbound, func() bool { return true }); c != nil && (c.RTT == 0 || c.RTT > time.Hour*24) {
			t.Errorf("RTT %v", c.RTT)
		}
	})
}
