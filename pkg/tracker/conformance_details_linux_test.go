package tracker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// checkDetails checks what rows hold beyond psutil's fields: where a source says
// that it knows a field it is right, and otherwise the field is empty.
func (v *viewer) checkDetails() {
	v.t.Helper()
	held := descriptors(v.t, v.sees)
	for _, source := range v.sources {
		a := v.ours.query(query{Source: source, Kinds: []string{"all"}, Holders: true})[0]
		if a.Error != "" {
			v.t.Errorf("%s: %s", name(source), a.Error)
		}
		for i := range a.Rows {
			r := &a.Rows[i]
			for _, complaint := range v.complaints(r, source, held) {
				v.t.Errorf("%s: %v: %s", name(source), r.psRow, complaint)
			}
		}
	}
}

// complaints says what is wrong with the details of r.
func (v *viewer) complaints(r *fullRow, source tracker.Source, held map[uint64][]conn.Holder) (all []string) {
	complain := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }

	must := conn.KnownInode | conn.KnownNetNS
	if source == tracker.SourceNetlink || source == tracker.SourceEBPF {
		must |= conn.KnownCookie
	}
	if r.PID != 0 {
		must |= conn.KnownHolders
	}
	if !r.Known.Has(must) && !v.pending(r) {
		complain("known is %#b, which lacks some of %#b", r.Known, must)
	}
	for _, f := range []struct {
		flag  conn.Known
		empty bool
	}{
		{conn.KnownUID, r.UID == 0},
		{conn.KnownNetNS, r.NetNS == 0},
		{conn.KnownInode, r.Inode == 0},
		{conn.KnownCookie, r.Cookie == 0},
		{conn.KnownHolders, r.Holders == nil},
	} {
		if !r.Known.Has(f.flag) && !f.empty {
			complain("has a value for %#b, which is unknown", f.flag)
		}
	}
	if r.Known.Has(conn.KnownNetNS) && r.NetNS != v.netns {
		complain("network namespace %d, want %d", r.NetNS, v.netns)
	}
	if r.Known.Has(conn.KnownUID) && r.Inode == 0 {
		complain("uid %d of a socket without an inode", r.UID)
	}
	if r.PID == 0 {
		if r.FD != -1 || r.Process != nil || len(r.Holders) > 0 {
			complain("nobody holds it, but it has descriptor %d, process %+v, holders %v", r.FD, r.Process, r.Holders)
		}
		if facts := v.about(r); len(facts) > 0 && !slices.ContainsFunc(facts, r.agrees) {
			complain("inode %d, cookie %x, uid %d; want those of %+v", r.Inode, r.Cookie, r.UID, *facts[0])
		}
		return all
	}

	if want := held[r.Inode]; r.Known.Has(conn.KnownHolders) && !slices.Equal(r.Holders, want) {
		complain("holders %v, want %v", r.Holders, want)
	}
	f, multipath := inspect(v.t, r.PID, r.FD)
	if multipath {
		f.cookie = r.Cookie // an MPTCP socket has another one than its subflow, which the row is about
	}
	if !r.agrees(f) {
		complain("inode %d, cookie %x, uid %d; want those of %+v", r.Inode, r.Cookie, r.UID, *f)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.PID))
	if p := r.Process; err != nil || p == nil || p.PID != r.PID || p.Comm+"\n" != string(comm) || p.Start.IsZero() {
		complain("process %+v, want %q (%v)", p, comm, err)
	}
	return all
}

// about returns the facts that the row r, which has no owner, may be about.
func (v *viewer) about(r *fullRow) (facts []*fact) {
	for _, f := range v.facts {
		if r.Family == uint16(f.family) && r.Type == uint8(f.typ) && r.Status == f.status.String() &&
			r.Laddr == formatAddr(f.laddr) && r.Raddr == formatAddr(f.raddr) {
			facts = append(facts, f)
		}
	}
	return facts
}

// pending reports whether r is about connections to a unix socket that nobody has
// accepted: sock_diag only tells how many there are.
func (v *viewer) pending(r *fullRow) bool {
	return conn.Family(r.Family) == conn.Unix && r.Inode == 0 && r.Known.Has(conn.KnownInode|conn.KnownNetNS)
}

// agrees reports whether the fields of r that are known are those of f.
func (r *fullRow) agrees(f *fact) bool {
	return f.details == unknown ||
		(!r.Known.Has(conn.KnownInode) || r.Inode == f.inode) && (f.details < full ||
			(!r.Known.Has(conn.KnownCookie) || r.Cookie == f.cookie) &&
				(!r.Known.Has(conn.KnownUID) || r.UID == f.uid))
}

// inspect looks at a socket of any process by a duplicate of its descriptor.
func inspect(t *testing.T, pid, fd int32) (f *fact, multipath bool) {
	t.Helper()
	stolen := steal(t, pid, fd)
	defer unix.Close(stolen)
	protocol, err := unix.GetsockoptInt(stolen, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	must(t, err)
	f = &fact{}
	f.look(t, stolen)
	return f, protocol == unix.IPPROTO_MPTCP
}

// steal returns a duplicate of a descriptor of the process pid.
func steal(t *testing.T, pid, fd int32) int {
	t.Helper()
	pidfd, err := unix.PidfdOpen(int(pid), 0)
	must(t, err)
	defer unix.Close(pidfd)
	stolen, err := unix.PidfdGetfd(pidfd, int(fd), 0)
	must(t, err)
	return stolen
}

// look fills in the details of f from its descriptor fd.
func (f *fact) look(t *testing.T, fd int) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	must(t, err)
	f.details, f.inode, f.cookie, f.uid = full, st.Ino, cookie, st.Uid
}

// descriptors returns the holders of each socket, among the processes that are
// seen, ascending by (PID, FD).
func descriptors(t *testing.T, sees func(pid int32) bool) map[uint64][]conn.Holder {
	t.Helper()
	held := make(map[uint64][]conn.Holder)
	links, err := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	must(t, err)
	for _, link := range links {
		target, _ := os.Readlink(link)
		digits, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			continue
		}
		inode, err := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 64)
		must(t, err)
		var h conn.Holder
		_, err = fmt.Sscanf(link, "/proc/%d/fd/%d", &h.PID, &h.FD)
		must(t, err)
		if sees(h.PID) {
			held[inode] = append(held[inode], h)
		}
	}
	for _, holders := range held {
		slices.SortFunc(holders, func(a, b conn.Holder) int {
			if a.PID != b.PID {
				return int(a.PID - b.PID)
			}
			return int(a.FD - b.FD)
		})
	}
	return held
}
