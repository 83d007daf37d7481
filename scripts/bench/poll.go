package main

import (
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// benchPoll measures what a stream costs that has to be polled for: the share of a
// core that it takes while so many sockets exist, most of which do nothing.
func benchPoll(sockets int, limit time.Duration) error {
	text, err := describe()
	if err != nil {
		return err
	}
	fmt.Print(text)
	holders, err := holdSockets(sockets)
	defer release(holders)
	if err != nil {
		return err
	}
	g := grid{{fmt.Sprintf("%d sockets, %v", sockets, limit), "user, ms/s", "system, ms/s", "of a core", "RSS, MiB"}}
	for _, backend := range []string{"netlink", "procfs"} {
		for _, rate := range []int{0, 1, 20} {
			name := fmt.Sprintf("conntrace --backend %s, %d new connections/s", backend, rate)
			if !wanted(name) {
				continue
			}
			row, err := pollOnce(backend, rate, limit)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			g.add(append([]string{name}, row...)...)
		}
	}
	g.print()
	return nil
}

// pollOnce measures one stream while so many connections a second come and go.
func pollOnce(backend string, rate int, limit time.Duration) ([]string, error) {
	c, err := start(exec.Command(program("conntrace"), "watch", "--backend", backend, "--no-seed", "-o", "json"))
	if err != nil {
		return nil, err
	}
	user, system, err := settled(c.pid())
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := connectAt(rate, began.Add(limit)); err != nil {
		return nil, err
	}
	user2, system2, err := cpuTime(c.pid())
	if err != nil {
		return nil, err
	}
	seconds := time.Since(began).Seconds()
	resident := statusBytes(c.pid(), "VmRSS")
	if err := c.interrupt(); err != nil {
		return nil, err
	}
	fmt.Printf("- %s, %d a second: %s\n", backend, rate, strings.TrimSpace(c.stderr.String()))
	u, s := float64(user2-user)/seconds, float64(system2-system)/seconds
	return []string{
		ms(u), ms(s), digits((u+s)/1e7) + " %",
		strconv.Itoa(resident >> 20),
	}, nil
}

// settled waits until a process has read the table and named every process, as shown
// by the CPU time that it takes, and returns that.
func settled(pid int) (user, system time.Duration, err error) {
	for range 30 {
		before := user + system
		time.Sleep(2 * time.Second)
		if user, system, err = cpuTime(pid); err != nil || before > 0 && user+system-before < 100*time.Millisecond {
			break
		}
	}
	return user, system, err
}

// connectAt opens and closes connections at a rate until a time.
func connectAt(rate int, end time.Time) error {
	if rate == 0 {
		time.Sleep(time.Until(end))
		return nil
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	for ; time.Now().Before(end); time.Sleep(time.Second / time.Duration(rate)) {
		client, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return err
		}
		server, err := l.Accept()
		if err != nil {
			return err
		}
		time.AfterFunc(3*time.Second, func() {
			client.Close()
			server.Close()
		})
	}
	return nil
}
