package fallback

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestCounters(t *testing.T) {
	unshareNet(t)
	c, err := openCounters(callerDir)
	must(t, err)
	defer c.close()
	read := func() counters {
		t.Helper()
		n, ok := c.read()
		if !ok {
			t.Fatal("no counters")
		}
		return n
	}
	if n := read(); n != (counters{}) {
		t.Errorf("in a new namespace: %+v", n)
	}
	l := listen(t, unix.AF_INET6, loopback6)
	if n := read(); n != (counters{inUse: 1}) {
		t.Errorf("with a listener: %+v", n)
	}
	connect(t, unix.AF_INET6, loopback6, localAddr(t, l).Port())
	accept(t, l)
	if n := read(); n != (counters{active: 1, passive: 1, established: 2, inUse: 3}) {
		t.Errorf("with a connection: %+v", n)
	}
}

func FuzzCounters(f *testing.F) {
	f.Add([]byte("Ip: A\nIp: 1\nTcp: RtoAlgorithm ActiveOpens PassiveOpens CurrEstab\nTcp: 1 70 43 0\n"))
	f.Add([]byte("sockets: used 14\nTCP: inuse 1 orphan 0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n counters
		parseSNMP(b, &n)
		parseInUse(b, "\nTCP: inuse ")
	})
}

func TestParseSNMP(t *testing.T) {
	var n counters
	if ok := parseSNMP([]byte("Ip: A\nIp: 1\nTcp: RtoAlgorithm ActiveOpens PassiveOpens CurrEstab X\nTcp: 1 70 43 2 9\nUdp: 1\n"), &n); !ok || n != (counters{active: 70, passive: 43, established: 2}) {
		t.Errorf("%t, %+v", ok, n)
	}
	for _, bad := range []string{
		"", "\nTcp: ActiveOpens PassiveOpens CurrEstab\n", "\nTcp: ActiveOpens PassiveOpens CurrEstab\nTcp: 1 2\n",
		"\nTcp: ActiveOpens PassiveOpens CurrEstab\nTcp: 1 2 -3\n", "\nTcp: ActiveOpens CurrEstab\nTcp: 1 2\n",
	} {
		if parseSNMP([]byte(bad), &n) {
			t.Errorf("%q is taken", bad)
		}
	}
}
