package tracker_test

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/fallback"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// The conformance suite compares what psutil and our sources say of the same
// sockets. Each of them answers from a process of its own, as the answer depends
// on who asks: on the user, the network namespace and the procfs.

func init() {
	helpers["ask"] = helperAsk
	helpers["hide"] = helperHide
}

// A psRow is a row of net_connections(), with what psutil shows of it.
type psRow struct {
	FD     int32  `json:"fd"`
	Family uint16 `json:"family"`
	Type   uint8  `json:"type"`
	Laddr  string `json:"laddr"` // as formatAddr has it
	Raddr  string `json:"raddr"`
	Status string `json:"status"`
	PID    int32  `json:"pid"`
}

func (r psRow) String() string {
	for _, a := range []*string{&r.Laddr, &r.Raddr} {
		if digits, ok := strings.CutPrefix(*a, "unix:"); ok {
			path, _ := hex.DecodeString(digits)
			*a = fmt.Sprintf("%q", path)
		}
	}
	return fmt.Sprintf("pid %d fd %d %v %v [%s] [%s] %s",
		r.PID, r.FD, conn.Family(r.Family), conn.Type(r.Type), r.Laddr, r.Raddr, r.Status)
}

func psRowOf(c *conn.Conn) psRow {
	return psRow{
		FD: c.FD, Family: uint16(c.Family), Type: uint8(c.Type), Laddr: formatAddr(c.Laddr), Raddr: formatAddr(c.Raddr),
		Status: c.Status.String(), PID: c.PID,
	}
}

// A fullRow is a row with what only our sources know.
type fullRow struct {
	psRow
	Known   conn.Known    `json:"known"`
	UID     uint32        `json:"uid"`
	NetNS   uint32        `json:"netns"`
	Inode   uint64        `json:"inode"`
	Cookie  uint64        `json:"cookie"`
	Holders []conn.Holder `json:"holders"`
	Process *conn.Process `json:"process"`
}

// A query is for psutil, which takes no notice of the last three fields, or for one
// of our sources.
type query struct {
	PID           int32          `json:"pid"`
	Kinds         []string       `json:"kinds"`
	Source        tracker.Source `json:"source"`
	Holders       bool           `json:"holders"`
	AllNamespaces bool           `json:"all_namespaces"`
}

// An answer is that for one kind.
type answer struct {
	Rows     []fullRow `json:"rows"`
	Error    string    `json:"error"` // "gone", "zombie", "denied", "unsupported" or a text; "" if there are rows
	Warnings []string  `json:"warnings"`
	Hidden   int       `json:"hidden"`
}

// formatAddr returns "IP|PORT", "unix:PATH" with the path in hexadecimal, or "".
func formatAddr(a conn.Addr) string {
	switch {
	case a.IsUnix():
		return "unix:" + hex.EncodeToString([]byte(a.Path()))
	case a.IsValid():
		return fmt.Sprintf("%s|%d", a.IP(), a.Port())
	}
	return ""
}

// helperAsk answers each query, a word of JSON, with a line of JSON: what our
// sources say.
func helperAsk(r *bufio.Scanner, w io.Writer) error {
	for r.Scan() {
		var q query
		if err := json.Unmarshal(r.Bytes(), &q); err != nil {
			return err
		}
		answers := make([]answer, len(q.Kinds))
		for i, kind := range q.Kinds {
			answers[i] = takeSnapshot(q, kind)
		}
		if err := json.NewEncoder(w).Encode(answers); err != nil {
			return err
		}
	}
	return r.Err()
}

func takeSnapshot(q query, kind string) (a answer) {
	k, err := conn.ParseKind(kind)
	if err != nil {
		return answer{Error: err.Error()}
	}
	s, err := tracker.TakeSnapshot(context.Background(), tracker.SnapshotConfig{
		Source: q.Source,
		Query:  fallback.Query{Kind: k, PID: q.PID, Holders: q.Holders, AllNamespaces: q.AllNamespaces},
	})
	switch {
	case errors.Is(err, conn.ErrNoSuchProcess):
		a.Error = "gone"
	case errors.Is(err, fs.ErrPermission):
		a.Error = "denied"
	case errors.Is(err, errors.ErrUnsupported):
		a.Error = "unsupported"
	case err != nil:
		a.Error = err.Error()
	}
	for _, warning := range s.Warnings {
		a.Warnings = append(a.Warnings, warning.Error())
	}
	a.Hidden = s.Hidden
	for _, c := range s.Conns {
		a.Rows = append(a.Rows, fullRow{
			psRow: psRowOf(&c),
			Known: c.Known, UID: c.UID, NetNS: c.NetNS, Inode: c.Inode, Cookie: c.Cookie, Holders: c.Holders, Process: c.Process,
		})
	}
	return a
}

// An oracle is a process that answers queries.
type oracle struct{ *process }

func (o oracle) query(q query) []answer {
	o.t.Helper()
	b, err := json.Marshal(q)
	if err != nil {
		o.t.Fatal(err)
	}
	var answers []answer
	if err := json.Unmarshal([]byte(o.ask(string(b))), &answers); err != nil {
		o.t.Fatal(err)
	}
	if len(answers) != len(q.Kinds) {
		o.t.Fatalf("%d answers to %+v", len(answers), q)
	}
	return answers
}

//go:embed testdata/conformance_psutil.py
var psutilScript string

// A user is who asks.
type user struct {
	uid     uint32
	hidepid bool // procfs is mounted so that it shows only the user's own processes
}

var (
	root     = user{}
	nobody   = user{uid: 65534}
	confined = user{uid: 65534, hidepid: true}
)

// startPsutil starts psutil in the network namespace of the calling thread.
func startPsutil(t *testing.T, as user) oracle {
	t.Helper()
	cmd := exec.Command(testenv.Psutil(t), "-c", psutilScript)
	return oracle{launch(t, cmd, as)}
}

// enter moves psutil to the network namespace of the calling thread.
func (o oracle) enter() {
	o.t.Helper()
	if got := o.ask(fmt.Sprintf(`{"netns": "/proc/%d/task/%d/ns/net"}`, os.Getpid(), unix.Gettid())); got != "null" {
		o.t.Fatal(got)
	}
}

// startAs starts a helper that inherits the files as descriptors 3 and up.
func startAs(t *testing.T, helper string, as user, files ...*os.File) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") // the directory of the binary may be closed to others
	cmd.Env = append(os.Environ(), helperEnv+"="+helper)
	cmd.ExtraFiles = files
	return launch(t, cmd, as)
}

// launch starts cmd, to be asked a line at a time.
func launch(t *testing.T, cmd *exec.Cmd, as user) *process {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	switch {
	case as.hidepid: // helperHide turns into the command
		cmd.Env = append(cmd.Environ(), helperEnv+"=hide", fmt.Sprintf("%s=%s %d", hideEnv, helperIn(cmd.Env), as.uid))
		cmd.Args[0] = cmd.Path
		cmd.Path = "/proc/self/exe"
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	case as.uid != 0:
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: as.uid, Gid: as.uid}
	}
	p := &process{t: t, cmd: cmd}
	cmd.Stderr = os.Stderr
	var err error
	if p.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	p.out.Buffer(nil, 16<<20) // an answer is a line
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p
}

// hideEnv tells helperHide the helper to become, or "-" for the command that its
// arguments are, and the user.
const hideEnv = "CONNTRACE_TEST_HIDE"

func helperIn(env []string) string {
	for _, e := range env {
		if name, ok := strings.CutPrefix(e, helperEnv+"="); ok {
			return name
		}
	}
	return "-"
}

// helperHide hides the processes of other users, in a mount namespace of its own,
// and turns into another program.
func helperHide(*bufio.Scanner, io.Writer) error {
	var next string
	var uid int
	if _, err := fmt.Sscan(os.Getenv(hideEnv), &next, &uid); err != nil {
		return err
	}
	os.Unsetenv(helperEnv)
	if next != "-" {
		os.Setenv(helperEnv, next)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=2"); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
		return err
	}
	return syscall.Exec(os.Args[0], os.Args, os.Environ())
}
