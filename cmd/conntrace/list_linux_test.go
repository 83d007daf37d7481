package main

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
)

func TestListTCP(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l := listen(t, "tcp", address)
		client, server := connect(t, l)
		rs := rows(t, "--pid", self, "--kind", "tcp")
		for _, tt := range []struct{ laddr, raddr, status string }{
			{inetAddr(l.Addr()), "null", "LISTEN"},
			{inetAddr(client.LocalAddr()), inetAddr(l.Addr()), "ESTABLISHED"},
			{inetAddr(server.LocalAddr()), inetAddr(client.LocalAddr()), "ESTABLISHED"},
		} {
			r := find(rs, tt.laddr, tt.raddr)
			if r == nil {
				t.Errorf("no row from %s to %s", tt.laddr, tt.raddr)
				continue
			}
			if r.Status != tt.status || r.Type != int(conn.Stream) || r.FD < 0 || r.PID == nil || *r.PID != int32(os.Getpid()) {
				t.Errorf("from %s to %s: %+v", tt.laddr, tt.raddr, r)
			}
			link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(r.FD))
			if r.Inode != nil && link != "socket:["+strconv.FormatUint(*r.Inode, 10)+"]" {
				t.Errorf("descriptor %d is %s, not socket %d", r.FD, link, *r.Inode)
			}
		}
	}
}

func TestListFilters(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	client, _ := connect(t, l)
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	listener, outbound := inetAddr(l.Addr()), inetAddr(client.LocalAddr())
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packet.Close()
	datagrams := inetAddr(packet.LocalAddr())
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}

	for args, want := range map[string][3]bool{ // listener, outbound, datagrams
		"":                           {true, true, true},
		"-t":                         {true, true, false},
		"-u":                         {false, false, true},
		"-6":                         {false, false, false},
		"-l":                         {true, false, true},
		"-tl":                        {true, false, false},
		"--state listen":             {true, false, false},
		"--state ESTABLISHED,listen": {true, true, false},
		"--state none":               {false, false, true},
		"--port " + port:             {true, true, false},
		"--addr 127.0.0.0/8":         {true, true, true},
		"--addr 127.0.0.2":           {false, false, false},
		"--comm " + strings.TrimSpace(string(comm)):     {true, true, true},
		"--comm " + strings.TrimSpace(string(comm))[1:]: {false, false, false},
	} {
		rs := rows(t, append([]string{"--pid", self}, strings.Fields(args)...)...)
		got := [3]bool{find(rs, listener, "null") != nil, find(rs, outbound, listener) != nil, find(rs, datagrams, "null") != nil}
		if got != want {
			t.Errorf("list %s: listener, outbound, datagrams are listed: %v, want %v", args, got, want)
		}
	}
}

func TestListUnixPath(t *testing.T) {
	// A path of bytes that no text has, as any user can bind.
	path := filepath.Join(t.TempDir(), "a b\n\xff\"")
	listen(t, "unix", path)
	quoted, _ := json.Marshal(filepath.Dir(path))
	want := strings.TrimSuffix(string(quoted), `"`) + `/a b\n\udcff\""`
	if r := find(rows(t, "--pid", self, "-x"), want, `""`); r == nil || r.Status != "NONE" || r.Family != syscall.AF_UNIX {
		t.Errorf("row of %q: %+v", path, r)
	}
}

// TestListFormats checks that every format shows the same sockets.
func TestListFormats(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	connect(t, l)
	want := len(rows(t, "--pid", self))

	out := mustRun(t, "list", "--pid", self, "-o", "ndjson")
	n := 0
	for scanner := bufio.NewScanner(strings.NewReader(out)); scanner.Scan(); n++ {
		if !json.Valid(scanner.Bytes()) {
			t.Errorf("no JSON: %s", scanner.Bytes())
		}
	}
	if n != want {
		t.Errorf("%d objects in ndjson, %d in json", n, want)
	}

	for header, flag := range []string{"-H", "--no-header=false"} {
		records, err := csv.NewReader(strings.NewReader(mustRun(t, "list", "--pid", self, "-o", "csv", flag))).ReadAll()
		if err != nil || len(records) != want+header {
			t.Errorf("%d records in csv %s, %d in json: %v", len(records), flag, want, err)
		}
		table := mustRun(t, "list", "--pid", self, flag)
		if strings.Count(table, "\n") != want+header || strings.HasPrefix(table, "PROTO ") != (header == 1) {
			t.Errorf("table %s of %d sockets:\n%s", flag, want, table)
		}
		if !strings.Contains(table, l.Addr().String()) {
			t.Errorf("the table lacks %s:\n%s", l.Addr(), table)
		}
	}
}

func TestListEmpty(t *testing.T) {
	if rs := rows(t, "--pid", self, "--addr", "192.0.2.1"); rs == nil || len(rs) != 0 {
		t.Errorf("rows of no socket: %v", rs)
	}
	if out := mustRun(t, "list", "--pid", self, "--addr", "192.0.2.1", "-o", "ndjson"); out != "" {
		t.Errorf("ndjson of no socket: %q", out)
	}
}

func TestListHolders(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	file, err := l.(*net.TCPListener).File() // a second descriptor
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	args := []string{"--pid", self, "--holders", "-tl", "--port", strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}

	rs := rows(t, args...)
	if len(rs) != 1 || len(rs[0].Holders) != 2 {
		t.Fatalf("rows of a socket with two descriptors: %+v", rs)
	}
	records, err := csv.NewReader(strings.NewReader(mustRun(t, append([]string{"list", "-H", "-o", "csv"}, args...)...))).ReadAll()
	if err != nil || len(records) != 2 {
		t.Fatalf("records of a socket with two descriptors: %q, %v", records, err)
	}
	for i, h := range rs[0].Holders {
		if h.PID != os.Getpid() || records[i][0] != strconv.Itoa(h.FD) || records[i][8] != self {
			t.Errorf("holder %+v, record %q", h, records[i])
		}
	}
}

func TestListBackends(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	for _, backend := range []string{"auto", "netlink", "procfs"} {
		if r := find(rows(t, "--pid", self, "--backend", backend), inetAddr(l.Addr()), "null"); r == nil {
			t.Errorf("--backend %s: no row of %s", backend, l.Addr())
		}
	}
	if r := conntrace(t, "list", "--backend", "native"); r.status != exitFailed || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("--backend native: exit status %d, %q", r.status, r.stderr)
	}
}

func TestListNoSuchProcess(t *testing.T) {
	child := exec.Command("true")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	r := conntrace(t, "list", "--pid", strconv.Itoa(child.Process.Pid))
	if r.status != exitNoProcess || r.stdout != "" || !strings.Contains(r.stderr, "no such process") {
		t.Errorf("list --pid of a process that is gone: %+v", r)
	}
}

func TestListZombie(t *testing.T) {
	child := exec.Command("true")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	out.Read(make([]byte, 1)) // returns when it exits
	for stat := []byte(nil); !bytes.Contains(stat, []byte(") Z ")); {
		if stat, err = os.ReadFile("/proc/" + strconv.Itoa(child.Process.Pid) + "/stat"); err != nil {
			t.Fatal(err)
		}
	}
	r := conntrace(t, "list", "--pid", strconv.Itoa(child.Process.Pid))
	if r.status != exitZombie || r.stdout != "" || !strings.Contains(r.stderr, "zombie") {
		t.Errorf("list --pid of a zombie: %+v", r)
	}
}

func TestListPermission(t *testing.T) {
	cmd := command(t, "list", "--pid", "1")
	asNobody(cmd)
	r := finish(t, cmd)
	if r.status != exitPermission || r.stdout != "" || !strings.Contains(r.stderr, "CAP_SYS_PTRACE") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("list --pid 1: %+v", r)
	}
}

// TestListNotes checks that an ordinary user is told whose sockets have no
// process, unless he does not want to know.
func TestListNotes(t *testing.T) {
	cmd := command(t, "list")
	asNobody(cmd)
	if r := finish(t, cmd); r.status != exitOK || !strings.Contains(r.stderr, "may not be looked into") {
		t.Errorf("list: exit status %d, stderr %q", r.status, r.stderr)
	}
	cmd = command(t, "list", "-q")
	asNobody(cmd)
	if r := finish(t, cmd); r.status != exitOK || r.stderr != "" {
		t.Errorf("list -q: exit status %d, stderr %q", r.status, r.stderr)
	}
}

// asNobody makes cmd run without privilege.
func asNobody(cmd *exec.Cmd) {
	if os.Geteuid() != 0 {
		return // as it does already
	}
	// The directory of the binary may be closed to others, but not this link.
	cmd.Path = "/proc/self/exe"
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

func TestListClosedPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	var stderr bytes.Buffer
	cmd := command(t, "list")
	cmd.Stdout, cmd.Stderr = w, &stderr
	err = cmd.Run()
	w.Close()
	if err != nil || stderr.Len() > 0 {
		t.Errorf("list into a closed pipe: %v, stderr %q", err, &stderr)
	}
}

func TestListDiskFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	var stderr bytes.Buffer
	cmd := command(t, "list")
	cmd.Stdout, cmd.Stderr = full, &stderr
	cmd.Run()
	if cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(stderr.String(), "no space left") {
		t.Errorf("list to a full disk: exit status %d, stderr %q", cmd.ProcessState.ExitCode(), &stderr)
	}
}
