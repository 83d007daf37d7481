package render

import (
	"strconv"
	"time"
)

// appendBytes appends n with three digits and a unit of 1024: 512B, 1.25K, 31.4M.
func appendBytes(dst []byte, n uint64) []byte {
	if n < 1024 {
		return append(strconv.AppendUint(dst, n, 10), 'B')
	}
	f, unit := float64(n)/1024, 0
	for ; f >= 999.5; unit++ {
		f /= 1024
	}
	return append(appendDigits(dst, f), "KMGTPE"[unit])
}

// appendDuration appends d as people say it: 850us, 12.3ms, 4.56s, 3m07s, 2h05m,
// 4d03h.
func appendDuration(dst []byte, d time.Duration) []byte {
	const day = 24 * time.Hour
	switch {
	case d < time.Millisecond:
		return append(strconv.AppendInt(dst, d.Microseconds(), 10), "us"...)
	case d < time.Second:
		return append(appendDigits(dst, float64(d)/float64(time.Millisecond)), "ms"...)
	case d < time.Minute:
		return append(appendDigits(dst, d.Seconds()), 's')
	case d < time.Hour:
		return appendTwoUnits(dst, d, time.Minute, 'm', time.Second, 's')
	case d < day:
		return appendTwoUnits(dst, d, time.Hour, 'h', time.Minute, 'm')
	}
	return appendTwoUnits(dst, d, day, 'd', time.Hour, 'h')
}

func appendTwoUnits(dst []byte, d, big time.Duration, bigName byte, small time.Duration, smallName byte) []byte {
	dst = append(strconv.AppendInt(dst, int64(d/big), 10), bigName)
	dst = appendFraction(dst, int(d%big/small), 2)
	return append(dst, smallName)
}

// appendDigits appends f with three digits.
func appendDigits(dst []byte, f float64) []byte {
	switch {
	case f < 9.995:
		return strconv.AppendFloat(dst, f, 'f', 2, 64)
	case f < 99.95:
		return strconv.AppendFloat(dst, f, 'f', 1, 64)
	}
	return strconv.AppendFloat(dst, f, 'f', 0, 64)
}
