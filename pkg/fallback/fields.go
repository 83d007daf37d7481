package fallback

import (
	"bytes"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A fieldReader takes a line of a table apart. Once a field is not what it must
// be, bad is set and stays so, and further fields are of no use.
type fieldReader struct {
	rest []byte
	bad  bool
}

// next returns the next field; spaces separate them.
func (f *fieldReader) next() []byte {
	line := f.rest
	for len(line) > 0 && line[0] == ' ' {
		line = line[1:]
	}
	end := bytes.IndexByte(line, ' ')
	if end < 0 {
		end = len(line)
	}
	f.bad = f.bad || end == 0
	f.rest = line[end:]
	return line[:end]
}

func (f *fieldReader) skip(n int) {
	for range n {
		f.next()
	}
}

// decimal returns the next field, a number of at most so many bits.
func (f *fieldReader) decimal(bits int) uint64 {
	n, ok := parseUint(f.next(), bits)
	f.bad = f.bad || !ok
	return n
}

// hex returns the next field, a number of exactly so many hexadecimal digits.
func (f *fieldReader) hex(digits int) uint32 {
	b := f.next()
	n, ok := parseHex(b)
	f.bad = f.bad || !ok || len(b) != digits
	return n
}

// addr returns the next field, an address and port of the family. An address is
// printed as words of 32 bits, each in the byte order of the machine although it
// holds network byte order.
func (f *fieldReader) addr(family conn.Family) conn.Addr {
	b := f.next()
	digits := 8
	if family == conn.Inet6 {
		digits = 32
	}
	if len(b) != digits+len(":0000") || b[digits] != ':' {
		f.bad = true
		return conn.Addr{}
	}
	port, ok := parseHex(b[digits+1:])
	f.bad = f.bad || !ok
	var ip [16]byte
	for i := 0; i < digits; i += 8 {
		word, ok := parseHex(b[i : i+8])
		f.bad = f.bad || !ok
		hostEndian.PutUint32(ip[i/2:], word)
	}
	if family == conn.Inet6 {
		return conn.AddrIPv6(ip, uint16(port))
	}
	return conn.AddrIPv4([4]byte(ip[:4]), uint16(port))
}

// parseUint parses a decimal number of at most so many bits. It takes bytes, as
// strconv's does not.
func parseUint(b []byte, bits int) (uint64, bool) {
	limit := uint64(1)<<bits - 1
	n := uint64(0)
	for _, c := range b {
		d := uint64(c - '0')
		if d > 9 || n > (limit-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, len(b) > 0
}

// parseHex parses a hexadecimal number of at most 8 digits.
func parseHex(b []byte) (uint32, bool) {
	if len(b) == 0 || len(b) > 8 {
		return 0, false
	}
	n := uint32(0)
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		default:
			return 0, false
		}
		n = n<<4 | uint32(c)
	}
	return n, true
}
