package conn

import "errors"

// Errors about the process that a query asks for. A process whose descriptors
// may not be read gives an error that wraps [io/fs.ErrPermission].
var (
	ErrNoSuchProcess = errors.New("no such process")
	ErrZombie        = errors.New("process is a zombie")
)
