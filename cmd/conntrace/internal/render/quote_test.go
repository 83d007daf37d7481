package render

import (
	"encoding/json"
	"strconv"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestAppendQuoted(t *testing.T) {
	for in, want := range map[string]string{
		"":                 `""`,
		"plain":            `"plain"`,
		"a\"b\\c":          `"a\"b\\c"`,
		"\n\r\t\x00\x1b":   `"\n\r\t\u0000\u001b"`,
		"\x7f\u0085\u009b": `"\u007f\u0085\u009b"`,
		"\u00a0é…😀":        "\"\u00a0é…😀\"",
		"\xff\x80x":        `"\udcff\udc80x"`,
		"\xed\xa0\x80":     `"\udced\udca0\udc80"`, // a surrogate is not UTF-8
		"é\xc3":            `"é\udcc3"`,
		"\ufffd":           "\"\ufffd\"",
	} {
		if got := string(appendQuoted(nil, in)); got != want {
			t.Errorf("appendQuoted(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestAppendVisible(t *testing.T) {
	for in, want := range map[string]string{
		"tmux: server":         "tmux: server",
		"\x1b[31mred":          `\x1b[31mred`,
		"a\nb\rc\td":           `a\nb\rc\td`,
		`C:\x`:                 `C:\\x`,
		"\xff\x7f":             `\xff\x7f`,
		"\u202egnp.exe":        `\u202egnp.exe`, // right-to-left override
		"\u009b2J":             `\u009b2J`,      // CSI in one character
		"\U000e0041 é世😀\ufffd": `\U000e0041 é世😀` + "\ufffd",
	} {
		if got := string(appendVisible(nil, in)); got != want {
			t.Errorf("appendVisible(%q) = %s, want %s", in, got, want)
		}
	}
}

// FuzzQuote checks that any name comes out as one line that a terminal cannot
// mistake for a command, and that can be turned back into the name.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "nginx", "\x1b[2J", "\xff\xfe", "a\"\\b\n", "\u202e\u009b", "\xed\xa0\x80", "\U000e0041"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		quoted := string(appendQuoted(nil, s))
		if !json.Valid([]byte(quoted)) || !utf8.ValidString(quoted) {
			t.Fatalf("appendQuoted(%q) = %q, no JSON", s, quoted)
		}
		if got := unquote(t, quoted); got != s {
			t.Fatalf("appendQuoted(%q) = %q, which means %q", s, quoted, got)
		}
		if want := ""; utf8.ValidString(s) {
			if err := json.Unmarshal([]byte(quoted), &want); err != nil || want != s {
				t.Fatalf("encoding/json reads %s as %q, not %q", quoted, want, s)
			}
		}

		visible := string(appendVisible(nil, s))
		for _, r := range visible {
			if !unicode.IsPrint(r) {
				t.Fatalf("appendVisible(%q) = %q, with %U", s, visible, r)
			}
		}
		var got []byte
		for rest := visible; rest != ""; {
			r, multibyte, tail, err := strconv.UnquoteChar(rest, 0)
			if err != nil {
				t.Fatalf("appendVisible(%q) = %q: %v", s, visible, err)
			}
			if multibyte {
				got = utf8.AppendRune(got, r)
			} else {
				got = append(got, byte(r))
			}
			rest = tail
		}
		if string(got) != s {
			t.Fatalf("appendVisible(%q) = %q, which means %q", s, visible, got)
		}
	})
}

// unquote reads a JSON string as Python does, with surrogateescape.
func unquote(t *testing.T, quoted string) string {
	var out []byte
	s := quoted[1 : len(quoted)-1]
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			n, err := strconv.ParseUint(s[i+1:i+5], 16, 16)
			if err != nil {
				t.Fatalf("%s: %v", quoted, err)
			}
			if n >= 0xdc80 && n <= 0xdcff {
				out = append(out, byte(n))
			} else {
				out = utf8.AppendRune(out, rune(n))
			}
			i += 4
		default:
			out = append(out, s[i])
		}
	}
	return string(out)
}
