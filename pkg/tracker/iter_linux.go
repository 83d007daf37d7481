package tracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/internal/sysinfo"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
)

// The records of the iterators: bpf/snapshot.h.
type (
	inetRow   = bpf.SnapshotInetRow
	holderRow = bpf.SnapshotHolderRow
)

// iterators are the BPF iterators that read the kernel's tables: a program in the
// kernel visits each socket, or descriptor, and writes a small record of it.
//
// Unix sockets are read by sock_diag: the kernel's iterator of them loses some. Each
// time its buffer is full it goes on with the next bucket of the hash table
// (bpf_iter_unix_seq_stop leaves st_bucket_done set, in Linux 5.16 to 6.18).
type iterators struct {
	tcp, udp, holders *link.Iter
	unix              fallback.Tables
}

// loadIterators loads them once for the life of the process: that takes longer
// than to read 100,000 sockets. They cost nothing while they are not read. An error
// is not kept, as privileges may come.
func loadIterators() (*iterators, error) {
	loaded.Lock()
	defer loaded.Unlock()
	if loaded.iterators == nil {
		it, err := newIterators()
		if err != nil {
			return nil, err
		}
		loaded.iterators = it
	}
	return loaded.iterators, nil
}

var loaded struct {
	sync.Mutex
	*iterators
}

func newIterators() (*iterators, error) {
	linux := sysinfo.Read().Linux
	if len(missingCapabilities(linux, bpfCapabilities...)) > 0 {
		return nil, os.ErrPermission
	}
	if !linux.HostPIDs {
		return nil, fmt.Errorf("iterators give the host's PIDs, and this is another PID namespace: %w", errors.ErrUnsupported)
	}
	var programs bpf.SnapshotPrograms
	if err := bpf.LoadSnapshotObjects(&programs, nil); err != nil {
		return nil, cause(err)
	}
	defer programs.Close() // the links keep them
	it := &iterators{unix: fallback.SockDiag()}
	for _, p := range []struct {
		program *ebpf.Program
		iter    **link.Iter
	}{
		{programs.TcpSockets, &it.tcp},
		{programs.UdpSockets, &it.udp},
		{programs.Holders, &it.holders},
	} {
		iter, err := link.AttachIter(link.IterOptions{Program: p.program})
		if err != nil {
			it.close()
			return nil, fmt.Errorf("iterator %s: %w", p.program, cause(err))
		}
		*p.iter = iter
	}
	return it, nil
}

func (it *iterators) close() {
	for _, l := range []*link.Iter{it.tcp, it.udp, it.holders} {
		if l != nil {
			l.Close()
		}
	}
}

// iterSource returns the source that reads by iterators.
func iterSource(procfs string) (fallback.Source, error) {
	it, err := loadIterators()
	if err != nil {
		return nil, err
	}
	return fallback.NewSource(string(SourceEBPF), procfs, it, it)
}

// Home implements [fallback.Tables].
func (it *iterators) Home() fallback.Namespace { return fallback.CallerNamespace() }

// Read implements [fallback.Tables].
func (it *iterators) Read(ctx context.Context, ns fallback.Namespace, kinds conn.Kind, s *fallback.Snapshot) error {
	if kinds&conn.KindTCP != 0 {
		if err := readInet(ctx, it.tcp, ns, kinds, conn.Stream, s); err != nil {
			return fmt.Errorf("tcp: %w", err)
		}
	}
	if kinds&conn.KindUDP != 0 {
		if err := readInet(ctx, it.udp, ns, kinds, conn.Datagram, s); err != nil {
			return fmt.Errorf("udp: %w", err)
		}
	}
	if kinds&conn.KindUnix != 0 {
		return it.unix.Read(ctx, ns, conn.KindUnix, s)
	}
	return nil
}

// Append implements [fallback.Holders]. The iterator visits processes by PID, and the
// descriptors of each in order. It hides nothing.
func (it *iterators) Append(ctx context.Context, dst []fallback.Holding) (holdings []fallback.Holding, hidden int, err error) {
	holdings = dst
	err = readRows(ctx, it.holders, fallback.Namespace{}, func(row *holderRow) {
		holdings = append(holdings, fallback.Holding{
			Inode:  row.Inode,
			Holder: conn.Holder{PID: int32(row.Pid), FD: row.Fd},
		})
	})
	return holdings, 0, err
}

func readInet(ctx context.Context, iter *link.Iter, ns fallback.Namespace, kinds conn.Kind, typ conn.Type, s *fallback.Snapshot) error {
	return readRows(ctx, iter, ns, func(row *inetRow) {
		s.Conns = append(s.Conns, conn.Conn{})
		c := &s.Conns[len(s.Conns)-1]
		fillInet(c, row, typ)
		if !kinds.Has(c.Kind()) {
			s.Conns = s.Conns[:len(s.Conns)-1]
		}
	})
}

// rowBuffer is what a read asks for. The kernel collects 8 pages of records
// (BPF_ITER's seq_buf) before it returns them.
const rowBuffer = 64 << 10

var rowBuffers = sync.Pool{New: func() any { return new([rowBuffer / 8]uint64) }} // aligned for records

// readRows calls f with each record that iter writes in the namespace ns.
func readRows[T any](ctx context.Context, iter *link.Iter, ns fallback.Namespace, f func(*T)) error {
	var r io.ReadCloser
	err := ns.Do(func() (err error) { // which is the one that the iterator will read
		r, err = iter.Open()
		return err
	})
	if err != nil {
		return err
	}
	defer r.Close()

	words := rowBuffers.Get().(*[rowBuffer / 8]uint64)
	defer rowBuffers.Put(words)
	buf := unsafe.Slice((*byte)(unsafe.Pointer(words)), rowBuffer)
	size := int(unsafe.Sizeof(*new(T)))
	n := 0
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := r.Read(buf[n:])
		n += m
		whole := n - n%size
		for at := 0; at < whole; at += size {
			f((*T)(unsafe.Pointer(&buf[at])))
		}
		n = copy(buf, buf[whole:n])
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF):
			return err
		case n > 0:
			return fmt.Errorf("the last record has %d bytes, not %d: %w", n, size, io.ErrUnexpectedEOF)
		default:
			return nil
		}
	}
}

// fillInet makes c the socket of row, without a holder.
func fillInet(c *conn.Conn, row *inetRow, typ conn.Type) {
	c.Type = typ
	c.FD = -1
	c.Known = conn.KnownInode | conn.KnownCookie
	c.Inode, c.Cookie = row.Inode, row.Cookie
	if row.Inode != 0 {
		c.UID = row.Uid
		c.Known |= conn.KnownUID
	}
	if conn.Family(row.Family) == conn.Inet {
		c.Family = conn.Inet
		c.Laddr = conn.AddrIPv4([4]byte(row.Laddr[:4]), row.Lport)
		c.Raddr = conn.AddrIPv4([4]byte(row.Raddr[:4]), row.Rport)
	} else {
		c.Family = conn.Inet6
		c.Laddr = conn.AddrIPv6(row.Laddr, row.Lport)
		c.Raddr = conn.AddrIPv6(row.Raddr, row.Rport)
	}
	if typ != conn.Stream {
		return
	}
	const newSynRecv = 12 // TCP_NEW_SYN_RECV
	if c.Status = conn.Status(row.State); row.State == newSynRecv {
		c.Status = conn.StatusSynRecv
	}
}
