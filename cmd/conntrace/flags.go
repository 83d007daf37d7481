package main

import (
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
	"github.com/spf13/cobra"
)

// sourceFlags say where to look. Every command that lets one choose has them.
type sourceFlags struct {
	source tracker.Source
	procfsFlags
}

// procfsFlags say where procfs is.
type procfsFlags struct {
	procfs string
}

var backends = []string{"auto", "ebpf", "netlink", "procfs", "native"}

func (f *sourceFlags) add(cmd *cobra.Command) {
	cmd.Flags().Var(&value[tracker.Source]{
		dst: &f.source, text: backends[0], name: "SOURCE", parse: parseBackend,
	}, "backend", "source to use: "+strings.Join(backends, ", "))
	complete(cmd, "backend", backends)
	f.procfsFlags.add(cmd)
}

func (f *procfsFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.procfs, "procfs", os.Getenv("HOST_PROC"), "`PATH` of procfs; HOST_PROC sets it too (default /proc)")
	cmd.Flags().Lookup("procfs").DefValue = ""
	must(cmd.MarkFlagDirname("procfs"))
}

func parseBackend(s string) (tracker.Source, error) {
	name, err := oneOf("backend", backends)(s)
	if name == "auto" {
		return tracker.SourceAuto, err
	}
	return tracker.Source(name), err
}

// check returns an error if procfs cannot be what it should.
func (f *procfsFlags) check() error {
	if f.procfs == "" {
		return nil
	}
	if info, err := os.Stat(f.procfs); err != nil || !info.IsDir() {
		return usageErrorf("--procfs or HOST_PROC: %q is no directory that can be read", f.procfs)
	}
	return nil
}

const defaultKind = conn.KindInet

// kindFlags say which sockets are meant: by psutil's kind, by the letters of ss,
// or by both, which then must agree.
type kindFlags struct {
	kind           conn.Kind // 0: not given
	ipv4, ipv6     bool
	tcp, udp, unix bool
	listening      bool
}

func (f *kindFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var(&value[conn.Kind]{
		dst: &f.kind, text: defaultKind.String(), name: "KIND", parse: conn.ParseKind,
	}, "kind", "sockets of this kind: "+strings.Join(conn.KindNames(), ", "))
	flags.BoolVarP(&f.tcp, "tcp", "t", false, "TCP sockets")
	flags.BoolVarP(&f.udp, "udp", "u", false, "UDP sockets")
	flags.BoolVarP(&f.unix, "unix", "x", false, "unix sockets")
	flags.BoolVarP(&f.ipv4, "ipv4", "4", false, "of TCP and UDP only IPv4")
	flags.BoolVarP(&f.ipv6, "ipv6", "6", false, "of TCP and UDP only IPv6")
	flags.BoolVarP(&f.listening, "listening", "l", false, "listening TCP sockets, and UDP sockets without a peer")
	complete(cmd, "kind", conn.KindNames())
}

// resolve returns the kinds that the flags leave.
func (f *kindFlags) resolve() (conn.Kind, error) {
	kind, letters := f.kind, f.letters()
	switch {
	case letters == "" && kind == 0:
		kind = defaultKind
	case letters != "" && kind == 0:
		kind = f.selected()
	case letters != "":
		kind &= f.selected()
	}
	if kind == 0 {
		return 0, usageErrorf("no socket is both --kind %s and %s: leave one out", f.kind, letters)
	}
	if f.listening {
		if kind &^= conn.KindUnix; kind == 0 {
			return 0, usageErrorf("-l is for TCP and UDP: which unix sockets listen is not known")
		}
	}
	return kind, nil
}

// selected returns what the letters alone select. -4 and -6 narrow -t and -u, or
// stand for both; -x adds unix sockets.
func (f *kindFlags) selected() conn.Kind {
	var kind conn.Kind
	if f.tcp {
		kind |= conn.KindTCP
	}
	if f.udp {
		kind |= conn.KindUDP
	}
	if kind == 0 && (f.ipv4 || f.ipv6) {
		kind = conn.KindInet
	}
	switch {
	case f.ipv4 && !f.ipv6:
		kind &= conn.KindInet4
	case f.ipv6 && !f.ipv4:
		kind &= conn.KindInet6
	}
	if f.unix {
		kind |= conn.KindUnix
	}
	return kind
}

// letters returns the letters that were given, such as "-t4"; "" if none were.
func (f *kindFlags) letters() string {
	var s string
	for _, letter := range []struct {
		name string
		set  bool
	}{{"t", f.tcp}, {"u", f.udp}, {"x", f.unix}, {"4", f.ipv4}, {"6", f.ipv6}} {
		if letter.set {
			s += letter.name
		}
	}
	if s == "" {
		return ""
	}
	return "-" + s
}

// isListening reports whether c is what -l asks for.
func isListening(c *conn.Conn) bool {
	return c.Status == conn.StatusListen || c.Kind()&conn.KindUDP != 0 && !c.Raddr.IsValid()
}

// matchFlags choose sockets by process name and by address.
type matchFlags struct {
	comms    []string
	ports    []uint16
	prefixes []netip.Prefix
}

func (f *matchFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var(&values[string]{dst: &f.comms, name: "NAME", parse: parseComm}, "comm", "only of processes with this name")
	flags.Var(&values[uint16]{dst: &f.ports, name: "PORT", parse: parsePort}, "port", "only with this port at either end")
	flags.Var(&values[netip.Prefix]{dst: &f.prefixes, name: "ADDR", parse: parsePrefix}, "addr", "only with this IP address, or one in this CIDR, at either end")
	for _, flag := range []string{"comm", "port", "addr"} {
		complete(cmd, flag, nil) // no file names
	}
}

// match reports whether c passes.
func (f *matchFlags) match(c *conn.Conn) bool {
	if len(f.comms) > 0 && (c.Process == nil || !slices.Contains(f.comms, c.Process.Comm)) {
		return false
	}
	if len(f.ports) > 0 && !slices.Contains(f.ports, c.Laddr.Port()) && !slices.Contains(f.ports, c.Raddr.Port()) {
		return false
	}
	return len(f.prefixes) == 0 || c.Laddr.In(f.prefixes) || c.Raddr.In(f.prefixes)
}

// addFormat adds --format with its choices, the first of which is the default.
func addFormat(cmd *cobra.Command, format *string, choices ...string) {
	*format = choices[0]
	cmd.Flags().VarP(&value[string]{
		dst: format, text: *format, name: "FORMAT", parse: oneOf("format", choices),
	}, "format", "o", "output: "+strings.Join(choices, ", "))
	complete(cmd, "format", choices)
}
