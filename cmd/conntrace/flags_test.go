package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/spf13/cobra"
)

func TestKinds(t *testing.T) {
	for args, want := range map[string]conn.Kind{
		"":                 conn.KindInet,
		"--kind all":       conn.KindAll,
		"-t":               conn.KindTCP,
		"-tu":              conn.KindInet,
		"-x":               conn.KindUnix,
		"-4":               conn.KindInet4,
		"-6":               conn.KindInet6,
		"-46":              conn.KindInet,
		"-t4":              conn.KindTCP4,
		"-u6":              conn.KindUDP6,
		"-tux":             conn.KindAll,
		"-x4":              conn.KindInet4 | conn.KindUnix,
		"--kind tcp -4":    conn.KindTCP4,
		"--kind all -x":    conn.KindUnix,
		"--kind inet -tx":  conn.KindTCP,
		"--kind inet6 -t":  conn.KindTCP6,
		"-l":               conn.KindInet,
		"-l --kind all":    conn.KindInet,
		"-ltx":             conn.KindTCP,
		"--kind udp -t":    0,
		"--kind unix -4":   0,
		"--kind tcp4 -6":   0,
		"-lx":              0,
		"--kind unix -l":   0,
		"--kind inet4 -x6": 0,
	} {
		var f kindFlags
		var cmd cobra.Command
		f.add(&cmd)
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		got, err := f.resolve()
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %v, %v; want %v", args, got, err, want)
		}
		if err != nil && exitStatus(err) != exitUsage {
			t.Errorf("%q: exit status %d", args, exitStatus(err))
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.2.3":         "10.1.2.3/32",
		"10.1.2.3/8":       "10.0.0.0/8",
		"::1":              "::1/128",
		"fd00::/8":         "fd00::/8",
		"::ffff:127.0.0.1": "127.0.0.1/32",
	} {
		if got, err := parsePrefix(in); err != nil || got.String() != want {
			t.Errorf("parsePrefix(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "4096": 4096, "10B": 10, "1K": 1 << 10, "64KiB": 64 << 10, "64M": 64 << 20, "1GiB": 1 << 30,
		"18446744073709551615": 1<<64 - 1,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "K", "KiB", "-1", "1.5M", "64MB", "64mib", "1T", "1 MiB", "KM", "5iB", "18446744073709551615K", "18446744073709551616"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d", in, got)
		}
	}
}

func TestMatch(t *testing.T) {
	c := conn.Conn{
		Laddr:   conn.AddrFrom(netip.MustParseAddrPort("[::ffff:10.0.0.5]:443")),
		Raddr:   conn.AddrFrom(netip.MustParseAddrPort("[::ffff:192.168.7.8]:50000")),
		Process: &conn.Process{Comm: "nginx"},
	}
	for args, want := range map[string]bool{
		"":                                  true,
		"--comm nginx":                      true,
		"--comm sshd,nginx":                 true,
		"--comm sshd":                       false,
		"--port 443":                        true,
		"--port 1 --port 50000":             true,
		"--port 44":                         false,
		"--addr 10.0.0.0/8":                 true,
		"--addr 192.168.7.8":                true,
		"--addr ::ffff:192.168.7.8":         true,
		"--addr 192.168.7.9,fe80::/10":      false,
		"--comm nginx --port 80":            false,
		"--comm nginx --port 443 --addr ::": false,
	} {
		var f matchFlags
		var cmd cobra.Command
		f.add(&cmd)
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if got := f.match(&c); got != want {
			t.Errorf("%q: %v, want %v", args, got, want)
		}
	}
	if f := (matchFlags{comms: []string{""}}); f.match(&conn.Conn{}) {
		t.Error("a socket without a process has a name")
	}
}
