package stdio

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// enableColor asks the console to obey escape sequences, as Windows 10 and later
// do, and reports whether it does.
func enableColor(f *os.File) bool {
	var mode uint32
	console := windows.Handle(f.Fd())
	if windows.GetConsoleMode(console, &mode) != nil {
		return false
	}
	return windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}

// IsClosed reports whether err says that nobody reads the pipe any more.
func IsClosed(err error) bool {
	return errors.Is(err, windows.ERROR_BROKEN_PIPE) || errors.Is(err, windows.ERROR_NO_DATA)
}
