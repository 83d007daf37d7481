package tracker_test

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"golang.org/x/sys/unix"
)

// A program is a random sequence of calls, made by a few processes that share
// sockets. What a step does depends on the steps before it, so that most succeed.
type program struct {
	*testbed
	*rand.Rand
	players []*player
	targets []target
	trace   []string
	done    map[string]int // how many calls succeeded, by name
}

// A player is a process of a program.
type player struct {
	*actor
	socks []*sock
}

// A sock is a descriptor of a player.
type sock struct {
	fd          int
	domain, typ int
	bound       bool
	blocks      bool // accept(2) has made it
	listens     bool
	passes      bool // is an end of a unix socket that others can have the other end of
}

// A target is an address that a socket can connect to.
type target struct {
	domain, typ int
	addr        string
}

const maxPlayers = 5

// steps lists what a program does, each as often as its weight says. A step
// returns false if there is nothing it could do.
var steps = []struct {
	weight int
	step   func(*program) bool
}{
	{4, (*program).socket},
	{2, (*program).pair},
	{3, (*program).bind},
	{3, (*program).listen},
	{5, (*program).serve},
	{3, (*program).connect},
	{9, (*program).dial},
	{9, (*program).accept},
	{3, (*program).dup},
	{4, (*program).close},
	{4, (*program).shutdown},
	{3, (*program).transfer},
	{4, (*program).sendfd},
	{4, (*program).recvfd},
	{3, (*program).fork},
	{1, (*program).exit},
	{1, (*program).exec},
	{2, (*program).reset},
	{1, (*program).disconnect},
	{2, (*program).ownTable},
}

// step makes one random step.
func (p *program) step() {
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	for {
		n := p.IntN(total)
		for _, s := range steps {
			if n -= s.weight; n < 0 {
				if s.step(p) {
					return
				}
				break
			}
		}
	}
}

// try makes a call and writes it down.
func (p *program) try(who *player, op string, args ...any) ([]int, error) {
	p.t.Helper()
	fds, err := who.try(op, args...)
	p.trace = append(p.trace, fmt.Sprintf("%d: %s %v = %v %v", who.pid(), op, args, fds, err))
	if err == nil {
		p.done[op]++
	}
	return fds, err
}

// pick returns a random socket that ok accepts, and who has it; nil if there is
// none.
func (p *program) pick(ok func(*sock) bool) (*player, *sock) {
	for _, i := range p.Perm(len(p.players)) {
		who := p.players[i]
		for _, k := range p.Perm(len(who.socks)) {
			if s := who.socks[k]; ok(s) {
				return who, s
			}
		}
	}
	return nil, nil
}

func anySock(*sock) bool { return true }

func (w *player) add(s sock) *sock {
	w.socks = append(w.socks, &s)
	return &s
}

func (w *player) drop(s *sock) {
	for i := range w.socks {
		if w.socks[i] == s {
			w.socks = append(w.socks[:i], w.socks[i+1:]...)
			return
		}
	}
}

func (p *program) socket() bool {
	domain := p.domain()
	types := unixTypes
	if domain != unix.AF_UNIX {
		types = unixTypes[:2]
	}
	who, _ := p.open(domain, types[p.IntN(len(types))])
	return who != nil
}

func (p *program) domain() int {
	return []int{unix.AF_INET, unix.AF_INET6, unix.AF_UNIX}[p.IntN(3)]
}

// open opens a socket in a random process.
func (p *program) open(domain, typ int) (*player, *sock) {
	who := p.players[p.IntN(len(p.players))]
	fds, err := p.try(who, "socket", domain, typ|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil
	}
	p.try(who, "setsockopt", fds[0], unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	return who, who.add(sock{fd: fds[0], domain: domain, typ: typ})
}

func (p *program) pair() bool {
	who := p.players[p.IntN(len(p.players))]
	typ := unixTypes[p.IntN(3)]
	fds, err := p.try(who, "pair", typ|unix.SOCK_NONBLOCK)
	if err == nil {
		for _, fd := range fds {
			who.add(sock{fd: fd, domain: unix.AF_UNIX, typ: typ, bound: true, passes: true})
		}
	}
	return true
}

func (p *program) bind() bool {
	who, s := p.pick(func(s *sock) bool { return !s.bound })
	if s != nil {
		p.bindTo(who, s)
	}
	return s != nil
}

func (p *program) bindTo(who *player, s *sock) {
	var addr string
	switch s.domain {
	case unix.AF_UNIX:
		addr = []string{
			"unix:",
			sunPath(fmt.Sprintf("\x00%d\x00\xff", p.Int32())),
			sunPath(fmt.Sprintf("%s/%d\xe9", p.t.TempDir(), p.Int32())),
		}[p.IntN(3)]
	default:
		ips := []string{"127.0.0.1", "0.0.0.0"}
		if s.domain == unix.AF_INET6 {
			ips = []string{"[::1]", "[::]", "[::ffff:127.0.0.1]"}
		}
		addr = at(ips[p.IntN(len(ips))], 0)
		if p.IntN(3) == 0 { // an address that another socket may have, by SO_REUSEPORT
			addr = at(ips[0], 4000)
		}
	}
	if _, err := p.try(who, "bind", s.fd, addr); err == nil {
		s.bound = true
		if s.typ == unix.SOCK_DGRAM {
			p.addTarget(who, s)
		}
	}
}

// addTarget makes the address that s is bound to one to connect to.
func (p *program) addTarget(who *player, s *sock) {
	fd := steal(p.t, who.pid(), int32(s.fd))
	defer unix.Close(fd)
	addr, err := addressOf(unix.SYS_GETSOCKNAME, fd)
	must(p.t, err)
	if s.domain == unix.AF_UNIX {
		path := addr.Path()
		if name, ok := strings.CutPrefix(path, "@"); ok {
			path = "\x00" + strings.ReplaceAll(name, "@", "\x00")
		}
		p.targets = append(p.targets, target{s.domain, s.typ, sunPath(path)})
		return
	}
	ap := addr.AddrPort()
	if ap.Addr().IsUnspecified() || ap.Addr().Is4In6() {
		p.targets = append(p.targets, target{unix.AF_INET, s.typ, at("127.0.0.1", ap.Port())})
		p.targets = append(p.targets, target{unix.AF_INET6, s.typ, at("[::ffff:127.0.0.1]", ap.Port())})
		return
	}
	p.targets = append(p.targets, target{s.domain, s.typ, ap.String()})
}

func (p *program) listen() bool {
	who, s := p.pick(func(s *sock) bool {
		return s.bound && !s.blocks && !s.passes && !s.listens && s.typ != unix.SOCK_DGRAM
	})
	if s != nil {
		p.listenOn(who, s)
	}
	return s != nil
}

func (p *program) listenOn(who *player, s *sock) {
	if _, err := p.try(who, "listen", s.fd, p.IntN(4)); err == nil {
		s.listens = true
		p.addTarget(who, s)
	}
}

// serve makes a new listener.
func (p *program) serve() bool {
	who, s := p.open(p.domain(), unix.SOCK_STREAM)
	if s != nil {
		p.bindTo(who, s)
		p.listenOn(who, s)
	}
	return s != nil
}

func (p *program) connect() bool {
	i := p.target()
	who, s := p.pick(func(s *sock) bool {
		return i >= 0 && s.domain == p.targets[i].domain && s.typ == p.targets[i].typ && !s.listens && !s.passes
	})
	if s != nil {
		p.connectTo(who, s, i)
	}
	return s != nil
}

// dial connects a new socket.
func (p *program) dial() bool {
	i := p.target()
	if i < 0 {
		return false
	}
	who, s := p.open(p.targets[i].domain, p.targets[i].typ)
	if s != nil {
		p.connectTo(who, s, i)
	}
	return s != nil
}

// target returns the index of a random target, or -1.
func (p *program) target() int {
	if len(p.targets) == 0 {
		return -1
	}
	return p.IntN(len(p.targets))
}

func (p *program) connectTo(who *player, s *sock, i int) {
	addr := p.targets[i].addr
	if s.typ == unix.SOCK_DGRAM && s.bound && p.IntN(4) == 0 {
		addr = "unspec" // ends it
	}
	switch _, err := p.try(who, "connect", s.fd, addr); {
	case err == nil, err.Error() == unix.EINPROGRESS.Error():
		s.bound = true
		s.passes = s.domain == unix.AF_UNIX
	case err.Error() == unix.ECONNREFUSED.Error():
		p.targets = append(p.targets[:i], p.targets[i+1:]...)
	}
}

func (p *program) accept() bool {
	who, s := p.pick(func(s *sock) bool { return s.listens })
	if s == nil {
		return false
	}
	fds, err := p.try(who, "accept", s.fd)
	if err == nil {
		who.add(sock{fd: fds[0], domain: s.domain, typ: s.typ, bound: true, blocks: true, passes: s.domain == unix.AF_UNIX})
	}
	return err == nil
}

func (p *program) dup() bool {
	who, s := p.pick(anySock)
	if s == nil {
		return false
	}
	if fds, err := p.try(who, "dup", s.fd); err == nil {
		copy := *s
		copy.fd = fds[0]
		who.add(copy)
	}
	return true
}

func (p *program) close() bool {
	who, s := p.pick(anySock)
	if s == nil {
		return false
	}
	p.try(who, "close", s.fd)
	who.drop(s)
	return true
}

func (p *program) shutdown() bool {
	who, s := p.pick(func(s *sock) bool { return s.bound && s.typ != unix.SOCK_DGRAM })
	if s == nil {
		return false
	}
	if _, err := p.try(who, "shutdown", s.fd, p.IntN(3)); err == nil && s.domain != unix.AF_UNIX {
		s.listens = false
	}
	return true
}

// transfer sends or receives data. A lot of it stays with a sender.
func (p *program) transfer() bool {
	who, s := p.pick(func(s *sock) bool { return s.bound && !s.listens })
	if s == nil {
		return false
	}
	p.try(who, []string{"send", "recv"}[p.IntN(2)], s.fd, []int{1, 1 << 20}[p.IntN(2)])
	return true
}

func (p *program) sendfd() bool {
	who, via := p.pick(func(s *sock) bool { return s.passes })
	if via == nil {
		return false
	}
	s := who.socks[p.IntN(len(who.socks))]
	if _, err := p.try(who, "sendfd", via.fd, s.fd); err == nil && p.IntN(2) == 0 {
		p.try(who, "close", s.fd)
		who.drop(s)
	}
	return true
}

func (p *program) recvfd() bool {
	who, via := p.pick(func(s *sock) bool { return s.passes })
	if via == nil {
		return false
	}
	fds, err := p.try(who, "recvfd", via.fd)
	for _, fd := range fds { // of whatever kind
		who.add(sock{fd: fd, domain: unix.AF_UNSPEC, typ: unix.SOCK_DGRAM, bound: true})
	}
	return err == nil
}

// fork starts a process with some of another one's sockets, as root or not.
func (p *program) fork() bool {
	if len(p.players) == maxPlayers {
		return false
	}
	who := p.players[p.IntN(len(p.players))]
	var fds []int
	kid := &player{}
	for _, s := range who.socks {
		if p.IntN(3) > 0 {
			fds = append(fds, s.fd)
			kid.add(*s).fd = 2 + len(fds)
		}
	}
	as := root
	if p.IntN(4) == 0 {
		as = nobody
	}
	kid.actor = p.testbed.fork(who.actor, as, fds...)
	p.players = append(p.players, kid)
	p.trace = append(p.trace, fmt.Sprintf("%d: fork %v of %d, user %d", kid.pid(), fds, who.pid(), as.uid))
	p.done["fork"]++
	return true
}

// exit ends a process, with all its sockets at once; it stays as a zombie.
func (p *program) exit() bool {
	if len(p.players) < 3 {
		return false
	}
	i := p.IntN(len(p.players))
	who := p.players[i]
	who.kill()
	p.players = append(p.players[:i], p.players[i+1:]...)
	p.trace = append(p.trace, fmt.Sprintf("%d: exit", who.pid()))
	p.done["exit"]++
	return true
}

// exec makes a process execute itself, which keeps its sockets but for those that
// only a descriptor table of its own has.
func (p *program) exec() bool {
	p.try(p.players[p.IntN(len(p.players))], "exec")
	return true
}

// reset closes a connection with a RST.
func (p *program) reset() bool {
	who, s := p.pick(func(s *sock) bool { return s.isTCP() && s.bound })
	if s == nil {
		return false
	}
	p.try(who, "linger", s.fd)
	p.try(who, "close", s.fd)
	who.drop(s)
	return true
}

// disconnect makes a TCP socket one that can be used again (tcp_disconnect()).
func (p *program) disconnect() bool {
	who, s := p.pick(func(s *sock) bool { return s.isTCP() && s.bound })
	if s == nil {
		return false
	}
	if _, err := p.try(who, "connect", s.fd, "unspec"); err == nil {
		s.listens = false
	}
	return true
}

func (s *sock) isTCP() bool { return s.typ == unix.SOCK_STREAM && s.domain != unix.AF_UNIX }

// ownTable duplicates or closes a descriptor in the thread that has a descriptor
// table of its own, which is a copy from when this was first done.
func (p *program) ownTable() bool {
	who, s := p.pick(anySock)
	if s == nil {
		return false
	}
	p.try(who, []string{"own:dup", "own:close"}[p.IntN(2)], s.fd)
	return true
}
