package fallback

import (
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
)

func TestByPorts(t *testing.T) {
	linux := ephemeralPorts("linux")
	for _, test := range []struct {
		local, remote uint16
		want          conn.Direction
	}{
		{40000, 443, conn.Outbound},
		{40000, 8080, conn.Outbound},
		{443, 40000, conn.Inbound},
		{8080, 40000, conn.Inbound},
		{8080, 443, conn.Outbound}, // bound to a port, or with another range
		{800, 2049, 0},             // NFS connects from a reserved port
		{179, 179, 0},
		{40000, 50051, 0},
		{8080, 9090, 0},
	} {
		if got := byPorts(test.local, test.remote, linux); got != test.want {
			t.Errorf("%d to %d: %v, want %v", test.local, test.remote, got, test.want)
		}
	}
}
