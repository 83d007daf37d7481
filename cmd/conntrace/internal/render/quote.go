package render

import (
	"unicode"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendQuoted appends s as a JSON string. A byte that is not UTF-8 becomes
// \udcXX, as Python's surrogateescape has it, so that no two names look alike.
// DEL and the C1 controls are escaped too: JSON does not ask for it, but some
// terminals obey them.
func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0 // of what needs no escape and is not copied yet
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, `\n`...)
			case '\r':
				dst = append(dst, `\r`...)
			case '\t':
				dst = append(dst, `\t`...)
			default:
				dst = appendUnicode(dst, rune(c))
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			r = 0xdc00 | rune(s[i])
		case r >= 0xa0:
			i += n
			continue
		}
		dst = append(dst, s[start:i]...)
		dst = appendUnicode(dst, r)
		i += n
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// appendUnicode appends r, which is below U+10000, as \uXXXX.
func appendUnicode(dst []byte, r rune) []byte {
	return append(dst, '\\', 'u', hexDigits[r>>12&0xf], hexDigits[r>>8&0xf], hexDigits[r>>4&0xf], hexDigits[r&0xf])
}

// appendVisible appends s for people: whatever cannot be seen, or would move a
// terminal's cursor, as an escape of Go's (\n, \x1b, \u202e), and a backslash
// doubled. The result is one line and can be turned back into s.
func appendVisible(dst []byte, s string) []byte {
	for i := 0; i < len(s); {
		r, n := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		switch {
		case r == '\\':
			dst = append(dst, `\\`...)
		case r == '\n':
			dst = append(dst, `\n`...)
		case r == '\r':
			dst = append(dst, `\r`...)
		case r == '\t':
			dst = append(dst, `\t`...)
		case r == utf8.RuneError && n == 1, r < ' ', r == 0x7f:
			dst = append(dst, '\\', 'x', hexDigits[s[i]>>4], hexDigits[s[i]&0xf])
		case unicode.IsPrint(r):
			dst = append(dst, s[i:i+n]...)
		case r < 0x10000:
			dst = appendUnicode(dst, r)
		default:
			dst = append(dst, '\\', 'U', '0', '0')
			for shift := 20; shift >= 0; shift -= 4 {
				dst = append(dst, hexDigits[r>>shift&0xf])
			}
		}
		i += n
	}
	return dst
}
