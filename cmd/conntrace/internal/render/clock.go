package render

import "time"

// A clock writes times of day. Events come in bursts, so it keeps the text of
// the second it wrote last: formatting one is dearer than all else in a line.
type clock struct {
	layout string
	second int64
	text   []byte
}

// append appends t, down to the second.
func (c *clock) append(dst []byte, t time.Time) []byte {
	if s := t.Unix(); s != c.second || c.text == nil {
		c.second = s
		c.text = t.AppendFormat(c.text[:0], c.layout)
	}
	return append(dst, c.text...)
}

// appendFraction appends n in the given number of decimal digits.
func appendFraction(dst []byte, n, digits int) []byte {
	dst = append(dst, "000000000"[:digits]...)
	for i := len(dst) - 1; n > 0; i-- {
		dst[i] = '0' + byte(n%10)
		n /= 10
	}
	return dst
}
