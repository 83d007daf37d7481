package tracker

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/conntrace/conntrace/pkg/conn"
)

// ErrSocketChanged says that the descriptor of a row is not that of the row's
// socket any more: it was closed, and perhaps used for something else.
var ErrSocketChanged = errors.New("no longer the same socket")

// File returns a duplicate of c.FD, the descriptor through which the process c.PID
// holds the socket, as Python's socket.fromfd does for rows of psutil. On Linux
// that process may be any that this one may trace (ptrace(2)); other systems give
// an error that wraps [errors.ErrUnsupported].
//
// The duplicate is checked to be of the very socket that c was made of, as far as
// c knows it, so that a row that is out of date does no harm.
//
// The caller must close the file. The owner's descriptor stays open then, and the
// other way round; but the connection ends only when every duplicate is closed, or
// by shutdown(2) of any of them. Both share the socket with its options and the
// status flags of its open file: File leaves them as they are, so that the file
// blocks, or does not, just as the owner's descriptor.
//
// The error wraps
//   - [ErrSocketChanged] if the descriptor was closed, or is of another socket by now,
//   - [conn.ErrNoSuchProcess] if the process has ended,
//   - [io/fs.ErrPermission] if this process may not trace that one,
//   - [errors.ErrUnsupported] if the system has no way.
//
// c.PID means a process in the caller's PID namespace, which is not what a snapshot
// of another procfs tells.
func File(c *conn.Conn) (*os.File, error) {
	if runtime.GOOS == "linux" && (c.PID <= 0 || c.FD < 0) {
		return nil, errors.New("no descriptor of the socket is known")
	}
	f, err := duplicate(c)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d of process %d: %w", c.FD, c.PID, err)
	}
	return f, nil
}

// NetConn returns the connected socket of c. It makes a duplicate, with all that
// [File] says, which the caller must close. Socket types other than
// SOCK_STREAM can be used as well if they are connected.
//
// Package net wants sockets that do not block, and sets O_NONBLOCK. As the owner
// shares that flag, a process that is used to wait in read(2) gets EAGAIN from then
// on, which many take for a failure. It also turns TCP_NODELAY and keep-alive
// probes on. That cannot be avoided with package net: [File] does not do it.
func NetConn(c *conn.Conn) (net.Conn, error) {
	return wrap(c, connected, net.FileConn)
}

// PacketConn returns the datagram socket of c, connected or not. It makes a
// duplicate, with all that [File] says, which the caller must close. Datagrams go
// to whoever reads first, the owner or the caller.
//
// It sets O_NONBLOCK on the owner's socket too: see [NetConn].
func PacketConn(c *conn.Conn) (net.PacketConn, error) {
	return wrap(c, datagram, net.FilePacketConn)
}

// Listener returns the listening socket of c, TCP or unix. It makes a duplicate,
// with all that [File] says, which the caller must close; the owner goes on
// listening, and a unix socket keeps its path. Connections go to whoever accepts
// first, the owner or the caller.
//
// It sets O_NONBLOCK on the owner's socket too: see [NetConn]. A process that waits
// in accept(2) then gets EAGAIN.
func Listener(c *conn.Conn) (net.Listener, error) {
	return wrap(c, listening, net.FileListener)
}

// wrap makes a T of c's socket by open, which duplicates the file once more, if
// check finds it fit. Package net itself takes any socket for what it is told.
func wrap[T any](c *conn.Conn, check func(*os.File) error, open func(*os.File) (T, error)) (t T, err error) {
	f, err := File(c)
	if err != nil {
		return t, err
	}
	defer f.Close()
	if err := check(f); err != nil {
		return t, fmt.Errorf("descriptor %d of process %d: %w", c.FD, c.PID, err)
	}
	return open(f)
}
