// Package conn is the vocabulary of conntrace: what a socket is ([Conn]), what
// happens to it ([Event]), and which sockets are meant ([Kind]). The names and
// spellings are those of psutil's net_connections() and of the Linux kernel.
//
// The package does no I/O and imports the standard library only. Package
// [github.com/conntrace/conntrace/pkg/tracker] fills these types.
package conn
