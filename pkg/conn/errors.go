package conn

import "errors"

// ErrNoSuchProcess says that the process which a query asks for does not exist. One
// whose descriptors may not be read gives an error that wraps [io/fs.ErrPermission].
var ErrNoSuchProcess = errors.New("no such process")
