package tracker_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// A listener of one's own is among one's own sockets.
func ExampleNetConnectionsPID() {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	conns, err := tracker.NetConnectionsPID(context.Background(), conn.KindTCP4, int32(os.Getpid()))
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range conns {
		if c.Laddr.String() == l.Addr().String() {
			fmt.Println(c.Family, c.Type, c.Status, c.PID == int32(os.Getpid()), c.FD >= 0)
		}
	}
	// Output: AF_INET SOCK_STREAM LISTEN true true
}

// Both ends of a connection are sockets of this process; a duplicate of one of them
// is made from its row.
func ExampleFile() {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	conns, err := tracker.NetConnectionsPID(context.Background(), conn.KindTCP, int32(os.Getpid()))
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range conns {
		if c.Laddr.String() != client.LocalAddr().String() {
			continue
		}
		f, err := tracker.File(&c)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprint(f, "from the duplicate")
		f.Close() // client is open still
	}
	client.Close()

	server, err := l.Accept()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	text, err := io.ReadAll(server)
	fmt.Println(string(text), err)
	// Output: from the duplicate <nil>
}

// A duplicate of a listener accepts in its place.
func ExampleListener() {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	conns, err := tracker.NetConnectionsPID(context.Background(), conn.KindTCP, int32(os.Getpid()))
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range conns {
		if c.Laddr.String() != l.Addr().String() {
			continue
		}
		dup, err := tracker.Listener(&c)
		if err != nil {
			log.Fatal(err)
		}
		defer dup.Close()
		client, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		defer client.Close()
		server, err := dup.Accept()
		if err != nil {
			log.Fatal(err)
		}
		defer server.Close()
		fmt.Println(server.RemoteAddr().String() == client.LocalAddr().String())
	}
	// Output: true
}
