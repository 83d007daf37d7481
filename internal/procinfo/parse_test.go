package procinfo

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	const fields = " S 1 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 171717 1000 5 6\n"
	for _, comm := range []string{"sshd", "", "a b", "(sd-pam)", ") S 1 (", "x\ny"} {
		got, err := parseStat([]byte("42 (" + comm + ")" + fields))
		if err != nil || string(got.comm) != comm || got.start != 171717 {
			t.Errorf("comm %q: got %q, %d, %v", comm, got.comm, got.start, err)
		}
	}
	for _, bad := range []string{"", "42", "42 (x", "42 )x(", "42 (x)", "42 (x) S 1 2", "42 (x)" + fields[:20], "42 (x)" + fields[:strings.Index(fields, "171717")+3]} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) = %v, want an error", bad, got)
		}
	}
}

func TestParseStatus(t *testing.T) {
	const status = "Name:\tUid:\\n7\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t42\nPid:\t43\nUid:\t4294967294\t0\t0\t0\nGid:\t0\t0\t0\t0\n"
	tgid, uid, err := parseStatus([]byte(status))
	if tgid != 42 || uid != 4294967294 || err != nil {
		t.Errorf("got %d, %d, %v", tgid, uid, err)
	}
	for _, bad := range []string{"", "\nTgid:\t42\n", "\nTgid:\t-1\nUid:\t0\n", "\nTgid:\t1\nUid:\t4294967296\t", "\nTgid:\t1\nUid:\t10"} {
		if _, _, err := parseStatus([]byte(bad)); err == nil {
			t.Errorf("parseStatus(%q): no error", bad)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	for in, want := range map[string]string{
		"0::/\n": "/",
		"9:name=systemd:/\n4:memory:/a\n0::/user.slice/a:b\n": "/user.slice/a:b",
		"4:memory:/0::/a\n":  "",
		"0::/user.slice/cut": "",
		"":                   "",
	} {
		if got := string(parseCgroup([]byte(in))); got != want {
			t.Errorf("parseCgroup(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"":                   "",
		"/sys/fs/cgroup":     "/sys/fs/cgroup",
		`/mnt/x\134y\040\09`: `/mnt/x\y \09`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("42 (a) b) S 1 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 171717 1000"))
	f.Add([]byte("Name:\tx\nTgid:\t42\nUid:\t1\t2\t3\t4\n"))
	f.Add([]byte("0::/a\\040b\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && !bytes.Contains(b, s.comm) {
			t.Errorf("comm %q is not in the input", s.comm)
		}
		if tgid, _, err := parseStatus(b); err == nil && tgid < 0 {
			t.Errorf("thread group %d", tgid)
		}
		if path := parseCgroup(b); path != nil && !bytes.Contains(b, slices.Concat([]byte("0::"), path, []byte("\n"))) {
			t.Errorf("path %q is no line of the input", path)
		}
		if out := unescape(string(b)); len(out) > len(b) || !bytes.Contains(b, []byte("\\")) && out != string(b) {
			t.Errorf("unescape(%q) = %q", b, out)
		}
	})
}
