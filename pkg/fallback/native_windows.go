package fallback

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/conntrace/conntrace/internal/rawtable"
	"github.com/conntrace/conntrace/pkg/conn"
)

var (
	iphlpapi            = windows.NewLazySystemDLL("iphlpapi.dll")
	getExtendedTCPTable = iphlpapi.NewProc("GetExtendedTcpTable")
	getExtendedUDPTable = iphlpapi.NewProc("GetExtendedUdpTable")
)

// Table classes of iprtrmib.h: all sockets, with the PID that owns each.
const (
	tcpTableOwnerPIDAll = 5
	udpTableOwnerPID    = 1
)

// windowsTables lists the tables in psutil's order.
var windowsTables = [...]struct {
	kind   conn.Kind
	proc   *windows.LazyProc
	class  uintptr
	family uintptr
	decode func(dst []conn.Conn, raw []byte) ([]conn.Conn, error)
}{
	{conn.KindTCP4, getExtendedTCPTable, tcpTableOwnerPIDAll, windows.AF_INET, rawtable.AppendWindowsTCP4},
	{conn.KindTCP6, getExtendedTCPTable, tcpTableOwnerPIDAll, windows.AF_INET6, rawtable.AppendWindowsTCP6},
	{conn.KindUDP4, getExtendedUDPTable, udpTableOwnerPID, windows.AF_INET, rawtable.AppendWindowsUDP4},
	{conn.KindUDP6, getExtendedUDPTable, udpTableOwnerPID, windows.AF_INET6, rawtable.AppendWindowsUDP6},
}

// windowsSystem reads the tables of the IP Helper API, which anyone may. They have no
// descriptors, no unix sockets, and no remote address of a UDP socket. A connection
// belongs to the process that listens from the moment when it is established, and to
// none when it is in TIME_WAIT.
type windowsSystem struct {
	buffers sync.Pool // of *[]byte
}

func openNative() (nativeSystem, error) {
	for _, proc := range []*windows.LazyProc{getExtendedTCPTable, getExtendedUDPTable} {
		if err := proc.Find(); err != nil {
			return nil, err
		}
	}
	return new(windowsSystem), nil
}

func (*windowsSystem) kinds() conn.Kind { return conn.KindInet }

func (s *windowsSystem) read(ctx context.Context, q Query, snap *Snapshot) error {
	buf, _ := s.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer s.buffers.Put(buf)
	for i := range windowsTables {
		t := &windowsTables[i]
		if !q.Kind.Has(t.kind) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err := readWindowsTable(t.proc, t.family, t.class, buf)
		if err == nil {
			snap.Conns, err = t.decode(snap.Conns, *buf)
		}
		if errors.As(err, new(*rawtable.StateError)) {
			snap.Warnings = append(snap.Warnings, err)
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// windowsAttempts bounds how often a table is asked for that grows all the time.
const windowsAttempts = 10

// readWindowsTable fills buf, which it makes larger if need be, with a table.
func readWindowsTable(proc *windows.LazyProc, family, class uintptr, buf *[]byte) error {
	var status windows.Errno
	for range windowsAttempts {
		size := uint32(len(*buf))
		r, _, _ := proc.Call(uintptr(unsafe.Pointer(unsafe.SliceData(*buf))), uintptr(unsafe.Pointer(&size)), 0, family, class, 0)
		switch status = windows.Errno(r); {
		case status == windows.ERROR_SUCCESS && len(*buf) > 0:
			return nil
		case status == windows.ERROR_SUCCESS, status == windows.ERROR_INSUFFICIENT_BUFFER:
			// The table may have grown until it is asked for again.
			*buf = make([]byte, size+size/4+256)
		case windows.NTStatus(r) == windows.STATUS_UNSUCCESSFUL:
			// A table that changes too fast has been seen to give this.
		default:
			return fmt.Errorf("%s: %w", proc.Name, status)
		}
	}
	return fmt.Errorf("%s: %w, %d times over", proc.Name, status, windowsAttempts)
}

// processes implements nativeSystem. The list of processes has the names of those too
// that may not be opened, such as System.
func (*windowsSystem) processes() (lookup func(pid int32) (*conn.Process, error), err error) {
	names, err := processNames()
	if err != nil {
		return nil, fmt.Errorf("list of processes: %w", err)
	}
	path := make([]uint16, windows.MAX_LONG_PATH)
	return func(pid int32) (*conn.Process, error) {
		name, ok := names[uint32(pid)]
		if !ok {
			return nil, conn.ErrNoSuchProcess
		}
		p := &conn.Process{PID: pid, Comm: name}
		if h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(pid)); err == nil {
			p.Start, p.Executable = startTime(h), imageName(h, path)
			windows.CloseHandle(h)
		}
		return p, nil
	}, nil
}

// processNames returns the file name of the program that each process runs.
func processNames() (map[uint32]string, error) {
	list, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return nil, err
	}
	defer windows.CloseHandle(list)
	names := make(map[uint32]string)
	entry := windows.ProcessEntry32{Size: uint32(unsafe.Sizeof(windows.ProcessEntry32{}))}
	for err = windows.Process32First(list, &entry); err == nil; err = windows.Process32Next(list, &entry) {
		names[entry.ProcessID] = windows.UTF16ToString(entry.ExeFile[:])
	}
	if err != windows.ERROR_NO_MORE_FILES {
		return nil, err
	}
	return names, nil
}

// startTime returns when a process was started, the zero time if that is not told.
func startTime(process windows.Handle) time.Time {
	var start, exit, kernel, user windows.Filetime
	if windows.GetProcessTimes(process, &start, &exit, &kernel, &user) != nil {
		return time.Time{}
	}
	return time.Unix(0, start.Nanoseconds())
}

// imageName returns the path of the program that a process runs, "" if that is not
// told. It uses the memory of path.
func imageName(process windows.Handle, path []uint16) string {
	size := uint32(len(path))
	if windows.QueryFullProcessImageName(process, 0, &path[0], &size) != nil {
		return ""
	}
	return windows.UTF16ToString(path[:size])
}
