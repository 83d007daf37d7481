// Package stdio tells what is at the other end of an output stream: a terminal
// and what it can show, or a pipe that nobody reads any more.
package stdio

import (
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/term"
)

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Width returns how many columns the terminal w has, 0 if w is none.
func Width(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// Color reports whether w is a terminal that takes colours from a user who wants
// them (https://no-color.org).
func Color(w io.Writer) bool {
	return IsTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && enableColor(w.(*os.File))
}

// Unicode reports whether the user's locale is one of UTF-8.
func Unicode() bool {
	if runtime.GOOS == "windows" {
		return true // the console takes UTF-16, and package os converts
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale := os.Getenv(name); locale != "" {
			locale = strings.ToLower(locale)
			return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
		}
	}
	return false
}
