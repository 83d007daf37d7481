package tracker_test

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/pkg/conn"
)

var unixTypes = []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET}

// bindUnix binds a socket of each type to the path, or one if it is abstract, and
// adds the facts.
func (b *testbed) bindUnix(self *actor, path string) {
	b.t.Helper()
	for _, typ := range unixTypes {
		fd := self.do("socket", unix.AF_UNIX, typ, 0)
		self.do("bind", fd, sunPath(path))
		b.own(self, fd, conn.StatusNone).laddr = shown(path)
		if strings.HasPrefix(path, "\x00") {
			return // all types have these names in common
		}
		file, _, _ := strings.Cut(path, "\x00")
		must(b.t, unix.Unlink(file))
	}
}

// Names that psutil gets right. The kernel shows a name as it was bound, whatever
// has become of the file.
func unixNames(b *testbed, self *actor) {
	b.t.Chdir(b.t.TempDir()) // all paths are relative but one
	for _, path := range []string{
		b.t.TempDir() + "/s",
		"relative",
		"./.relative",
		"caf\xc3\xa9",
		"caf\xe9", // not UTF-8
		"\xff\xfe\x80",
		"@path",
		"cut\x00off",
		`back\slash"quote'%s\n\x41`,
		"\x01\x7f",
		strings.Repeat("x", 107),
		strings.Repeat("y", 108), // without a NUL
		"\x00abstract",
		"\x00a\x00\x00b\x00",
		"\x00",
		"\x00\x00",
		"\x00\xff",
		"\x00" + strings.Repeat("z", 107),
	} {
		b.bindUnix(self, path)
	}
	for _, typ := range unixTypes { // autobind
		fd := self.do("socket", unix.AF_UNIX, typ, 0)
		self.do("bind", fd, "unix:")
		if f := b.own(self, fd, conn.StatusNone); len(f.laddr.Path()) != len("@12345") {
			b.t.Errorf("autobind gave %q", f.laddr)
		}
	}
}

// Names that psutil shows as "", cuts, or fails on, as it splits the lines of
// /proc/net/unix at white space of any kind. What is right is what was bound.
func unixOddNames(b *testbed, self *actor) {
	b.t.Chdir(b.t.TempDir())
	b.psutilFails = true
	for _, path := range []string{
		"a b",
		"a ",
		" a",
		"@path, not abstract",
		"a\tb\vc\fd\x1ce",
		"no-break\u00a0space",
		"next\u0085line",
		"line\u2028separator\u3000",
		"a\nb",
		"a\n",
		"a\n\n",
		"a\nb c", // makes psutil fail altogether
		"a\r",
		"a\r\nb",
		"\x00a b\n",
		"\x00 ",
		"\x00\n",
		"\x00" + strings.Repeat("z\n", 53),
	} {
		b.bindUnix(self, path)
	}
}

// Who has a name and who has none, by type.
func unixConnected(b *testbed, self *actor) {
	for i, typ := range unixTypes {
		path := "\x00" + strings.Repeat("s", i+1)
		fd := self.do("socket", unix.AF_UNIX, typ, 0)
		self.do("bind", fd, sunPath(path))
		b.own(self, fd, conn.StatusNone)
		client := self.do("socket", unix.AF_UNIX, typ, 0)
		if typ == unix.SOCK_DGRAM {
			self.do("connect", client, sunPath(path))
			b.own(self, client, conn.StatusNone)
			continue
		}
		self.do("listen", fd, 4)
		self.do("connect", client, sunPath(path))
		b.own(self, client, conn.StatusNone)
		b.own(self, self.do("accept", fd), conn.StatusNone).laddr = shown(path)

		// A client may have a name, and its peer may be gone.
		client = self.do("socket", unix.AF_UNIX, typ, 0)
		self.do("bind", client, sunPath(path+"client"))
		self.do("connect", client, sunPath(path))
		b.own(self, client, conn.StatusNone)
		self.do("close", self.do("accept", fd))
	}
	for _, typ := range unixTypes {
		b.own(self, self.do("socket", unix.AF_UNIX, typ, 0), conn.StatusNone)
		fds, err := self.try("pair", typ)
		must(b.t, err)
		b.own(self, fds[0], conn.StatusNone)
		b.own(self, fds[1], conn.StatusNone)
	}
}

// Connections that wait for accept have the listener's name, and no inode.
func unixUnaccepted(b *testbed, self *actor) {
	dir := b.t.TempDir()
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		for waiting := range 3 {
			path := fmt.Sprintf("%s/%d-%d", dir, typ, waiting)
			fd := self.do("socket", unix.AF_UNIX, typ, 0)
			self.do("bind", fd, sunPath(path))
			self.do("listen", fd, 4)
			b.own(self, fd, conn.StatusNone)
			for range waiting { // makes rows that are equal
				client := self.do("socket", unix.AF_UNIX, typ, 0)
				self.do("connect", client, sunPath(path))
				b.own(self, client, conn.StatusNone)
				b.bare(conn.Unix, conn.Type(typ), conn.AddrUnix(path), conn.AddrUnix(""), conn.StatusNone)
			}
		}
	}
}

// As many sockets of each table as the kernel does not tell of in one piece.
func many(b *testbed, self *actor) {
	for range 600 {
		for _, s := range []struct{ domain, typ int }{
			{unix.AF_UNIX, unix.SOCK_STREAM}, {unix.AF_INET, unix.SOCK_DGRAM}, {unix.AF_INET, unix.SOCK_STREAM},
		} {
			fd := self.do("socket", s.domain, s.typ, 0)
			status := conn.StatusNone
			if s.domain == unix.AF_INET {
				self.do("bind", fd, at("127.0.0.1", 0))
			}
			if s.domain == unix.AF_INET && s.typ == unix.SOCK_STREAM {
				self.do("listen", fd, 1)
				status = conn.StatusListen
			}
			b.own(self, fd, status)
		}
	}
}
