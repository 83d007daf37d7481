package fallback

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// A counterReader reads the kernel's counters of TCP in one network namespace: of
// snmp, which are per CPU and summed up when read, and of sockstat and sockstat6. The
// files belong to the namespace for as long as they are open.
type counterReader struct {
	snmp, sockstat, sockstat6 *os.File // sockstat6 is nil where there is no IPv6
	buf                       []byte
}

// openCounters opens the files in the directory net of a process.
func openCounters(dir string) (*counterReader, error) {
	var c counterReader
	var err error
	if c.snmp, err = os.Open(dir + "/net/snmp"); err != nil {
		return nil, err
	}
	if c.sockstat, err = os.Open(dir + "/net/sockstat"); err != nil {
		c.snmp.Close()
		return nil, err
	}
	c.sockstat6, _ = os.Open(dir + "/net/sockstat6")
	c.buf = make([]byte, 8<<10)
	return &c, nil
}

func (c *counterReader) close() error {
	err := errors.Join(c.snmp.Close(), c.sockstat.Close())
	if c.sockstat6 != nil {
		err = errors.Join(err, c.sockstat6.Close())
	}
	return err
}

// read reads the counters; false if they cannot be read or understood.
func (c *counterReader) read() (n counters, ok bool) {
	if !parseSNMP(c.text(c.snmp), &n) {
		return n, false
	}
	inUse, ok := parseInUse(c.text(c.sockstat), "\nTCP: inuse ")
	if !ok {
		return n, false
	}
	n.inUse = inUse
	if c.sockstat6 != nil {
		if inUse, ok = parseInUse(c.text(c.sockstat6), "TCP6: inuse "); !ok {
			return n, false
		}
		n.inUse += inUse
	}
	return n, true
}

// text returns what is in a file now, good until the next call.
func (c *counterReader) text(f *os.File) []byte {
	size := 0
	for size < len(c.buf) {
		n, err := unix.Pread(int(f.Fd()), c.buf[size:], int64(size))
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		size += n
	}
	return c.buf[:size]
}

// parseSNMP takes the counters from /proc/net/snmp, where a line of names precedes
// one of values:
//
//	Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs ...
//	Tcp: 1 200 120000 -1 70 43 3 16 0 8734 ...
func parseSNMP(text []byte, n *counters) bool {
	label := []byte("\nTcp: ")
	_, rest, _ := bytes.Cut(text, label)
	names, rest, ok := bytes.Cut(rest, label)
	if !ok {
		return false
	}
	values, _, _ := bytes.Cut(rest, []byte("\n"))
	found := 0
	for len(names) > 0 && len(values) > 0 {
		var name, value []byte
		name, names, _ = bytes.Cut(names, []byte(" "))
		value, values, _ = bytes.Cut(values, []byte(" "))
		var dst *uint64
		switch string(name) {
		case "ActiveOpens":
			dst = &n.active
		case "PassiveOpens":
			dst = &n.passive
		case "CurrEstab":
			dst = &n.established
		default:
			continue
		}
		if *dst, ok = parseUint(value, 64); !ok {
			return false
		}
		found++
	}
	return found == 3
}

// parseInUse takes the number that follows the label in sockstat.
func parseInUse(text []byte, label string) (uint64, bool) {
	_, rest, ok := bytes.Cut(text, []byte(label))
	if !ok {
		return 0, false
	}
	end := bytes.IndexAny(rest, " \n")
	if end < 0 {
		return 0, false
	}
	return parseUint(rest[:end], 64)
}
