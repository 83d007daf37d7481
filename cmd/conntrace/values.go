package main

import (
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// A value is a flag whose text is parsed into a T. It implements pflag.Value.
type value[T any] struct {
	dst   *T
	text  string // as given, or the default
	name  string // placeholder in the help
	parse func(string) (T, error)
}

func (v *value[T]) String() string { return v.text }
func (v *value[T]) Type() string   { return v.name }

func (v *value[T]) Set(s string) (err error) {
	v.text = s
	*v.dst, err = v.parse(s)
	return err
}

// A values is a flag that takes several values, separated by commas or given one by
// one. It implements pflag.Value.
type values[T any] struct {
	dst   *[]T
	name  string // placeholder in the help
	parse func(string) (T, error)
}

func (v *values[T]) String() string { return "" } // none has a default
func (v *values[T]) Type() string   { return v.name }

func (v *values[T]) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		one, err := v.parse(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		*v.dst = append(*v.dst, one)
	}
	return nil
}

// oneOf returns a parser that takes only the valid names.
func oneOf(what string, valid []string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(valid, s) {
			return "", fmt.Errorf("unknown %s %q; valid ones are %s", what, s, strings.Join(valid, ", "))
		}
		return s, nil
	}
}

func parsePID(s string) (int32, error) {
	pid, err := strconv.ParseUint(s, 10, 31)
	if err != nil || pid == 0 {
		return 0, fmt.Errorf("%q is no process ID: give a number from 1 to %d", s, math.MaxInt32)
	}
	return int32(pid), nil
}

func parsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%q is no port: give a number from 1 to 65535", s)
	}
	return uint16(port), nil
}

// parsePrefix takes an IP address or a CIDR. An IPv4-mapped address is IPv4.
func parsePrefix(s string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is no address: give an IP address or a CIDR such as 10.0.0.0/8", s)
	}
	return p.Masked(), nil
}

// parseComm takes a process name. Linux keeps the first 15 bytes of a name
// (TASK_COMM_LEN), so no more can be compared there.
func parseComm(s string) (string, error) {
	const maxComm = 15
	if s == "" {
		return "", fmt.Errorf("a process name cannot be empty")
	}
	if runtime.GOOS == "linux" && len(s) > maxComm {
		s = s[:maxComm]
	}
	return s, nil
}

func parseCount(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no count: give a number above 0", s)
	}
	return n, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is no time: give one above 0, such as 500ms, 30s or 1h30m", s)
	}
	return d, nil
}

// complete tells the shell the values of a flag.
func complete(cmd *cobra.Command, flag string, valid []string) {
	must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(valid, cobra.ShellCompDirectiveNoFileComp)))
}

// completeList is complete for a flag that takes several values: it completes
// what stands behind the last comma.
func completeList(cmd *cobra.Command, flag string, valid []string) {
	must(cmd.RegisterFlagCompletionFunc(flag, func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		given := typed[:strings.LastIndexByte(typed, ',')+1]
		choices := make([]string, len(valid))
		for i, v := range valid {
			choices[i] = given + v
		}
		return choices, cobra.ShellCompDirectiveNoFileComp
	}))
}

// must is for errors that only a mistake in this program can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
