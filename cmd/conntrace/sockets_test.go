package main

import (
	"encoding/json"
	"net"
	"os"
	"strconv"
	"testing"
)

// row is what psutil's users read of a row.
type row struct {
	FD           int
	Family, Type int
	Laddr, Raddr json.RawMessage
	Status       string
	PID          *int32
	Comm         *string
	Inode        *uint64
	Holders      []struct{ PID, FD int }
}

func inetAddr(a net.Addr) string {
	host, port, _ := net.SplitHostPort(a.String())
	return `{"ip":"` + host + `","port":` + port + `}`
}

func rows(t *testing.T, args ...string) []row {
	t.Helper()
	var rs []row
	out := mustRun(t, append([]string{"list", "--format", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &rs); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return rs
}

func find(rs []row, laddr, raddr string) *row {
	for i := range rs {
		if string(rs[i].Laddr) == laddr && string(rs[i].Raddr) == raddr {
			return &rs[i]
		}
	}
	return nil
}

var self = strconv.Itoa(os.Getpid())

// listen opens a listener on the loopback interface.
func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skip(err) // no IPv6 here
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// connect opens a connection to l and returns both of its ends.
func connect(t *testing.T, l net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}
