// Sockets opens TCP connections over loopback and holds both ends of each.
//
//	sockets N ADDRESS
//
// It opens N sockets, N an even number, prints "ready", and ends when its standard
// input does.
package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sockets:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: sockets N ADDRESS")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 2 || n%2 != 0 {
		return fmt.Errorf("%q is no even number", args[0])
	}
	addr, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	if err := open(n, addr.As4()); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// open opens n sockets. The listener is closed in the end, so that there are n.
func open(n int, addr [4]byte) error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: addr}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(l, 16); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	to, err := unix.Getsockname(l)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	for range n / 2 {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		// A reset leaves nothing in TIME_WAIT for the next size.
		if err := unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return fmt.Errorf("SO_LINGER: %w", err)
		}
		if err := unix.Connect(c, to); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		if _, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC); err != nil {
			return fmt.Errorf("accept4: %w", err)
		}
	}
	return nil
}
