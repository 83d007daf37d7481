// Package procinfo looks up processes in procfs: what [conn.Process] holds of
// them, and nothing else.
package procinfo

import (
	"bytes"
	"errors"
	"strconv"
)

var errMalformed = errors.New("malformed")

// stat is what is wanted of /proc/PID/stat.
type stat struct {
	comm  []byte
	start uint64 // clock ticks since boot
}

// parseStat parses /proc/PID/stat. The command name stands in parentheses, not
// escaped, and may itself hold parentheses, spaces and newlines; no later field
// does.
func parseStat(b []byte) (stat, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return stat{}, errMalformed
	}
	const state, starttime = 3, 22 // numbers of fields, as in proc_pid_stat(5)
	rest := b[end+1:]
	for range starttime - state {
		_, after, ok := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
		if !ok {
			return stat{}, errMalformed
		}
		rest = after
	}
	field, _, ok := bytes.Cut(rest, []byte(" "))
	if !ok { // which may be but the first digits of it
		return stat{}, errMalformed
	}
	start, err := parseUint(field, 64)
	return stat{comm: b[open+1 : end], start: start}, err
}

// parseStatus returns the thread group ID and the real user ID of
// /proc/PID/status.
func parseStatus(b []byte) (tgid int32, uid uint32, err error) {
	// Only "Name:" precedes these lines with text of the process's choosing, and there
	// newlines are escaped (proc_task_name in fs/proc/array.c).
	tgid64, err := parseLine(b, "\nTgid:\t", 31)
	if err != nil {
		return 0, 0, err
	}
	uid64, err := parseLine(b, "\nUid:\t", 32)
	return int32(tgid64), uint32(uid64), err
}

// parseLine returns the number that follows the label in a file of lines; the
// label begins with the newline before it.
func parseLine(b []byte, label string, bits int) (uint64, error) {
	_, rest, ok := bytes.Cut(b, []byte(label))
	if !ok {
		return 0, errMalformed
	}
	end := bytes.IndexAny(rest, "\t\n")
	if end < 0 {
		return 0, errMalformed
	}
	return parseUint(rest[:end], bits)
}

// parseCgroup returns the path of the cgroup v2 in /proc/PID/cgroup, which is in
// the hierarchy numbered 0; nil if there is none, or if it is cut short: what is
// left of it may be the path of another one.
func parseCgroup(b []byte) []byte {
	for line := range bytes.Lines(b) {
		if path, ok := bytes.CutPrefix(line, []byte("0::")); ok {
			if path, ok = bytes.CutSuffix(path, []byte("\n")); ok {
				return path
			}
		}
	}
	return nil
}

// unescape undoes what mangle_path does to the paths in mountinfo: white space
// and backslashes are written as a backslash and three octal digits.
func unescape(b string) string {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		if b[0] == '\\' && len(b) >= 4 {
			if c, err := strconv.ParseUint(b[1:4], 8, 8); err == nil {
				out, b = append(out, byte(c)), b[4:]
				continue
			}
		}
		out, b = append(out, b[0]), b[1:]
	}
	return string(out)
}

func parseUint(b []byte, bits int) (uint64, error) {
	n, err := strconv.ParseUint(string(b), 10, bits)
	if err != nil {
		return 0, errMalformed
	}
	return n, nil
}
