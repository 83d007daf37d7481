package fallback

import (
	"context"
	"errors"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
)

// A torn answer is asked for again; what is still torn then is a warning.
func TestReadWhole(t *testing.T) {
	record := make([]byte, sizeofInetDiagMsg)
	record[0], record[1] = linuxInet, tcpListen
	for _, test := range []struct{ torn, dumps, warnings int }{
		{0, 1, 0}, {1, 2, 0}, {dumpTries - 1, dumpTries, 0}, {dumpTries, dumpTries, 1}, {100, dumpTries, 1},
	} {
		s := Snapshot{Conns: make([]conn.Conn, 3), Warnings: []error{errShort}}
		dumps := 0
		err := readWhole(&tables[0], &s, func(each func([]byte)) (bool, error) {
			dumps++
			each(record)
			each(record)
			return dumps <= test.torn, nil
		})
		if err != nil || dumps != test.dumps || len(s.Conns) != 3+2 || len(s.Warnings) != 1+test.warnings {
			t.Errorf("torn %d times: %d dumps, %d sockets, %v, %v", test.torn, dumps, len(s.Conns), s.Warnings, err)
		}
	}
}

// A record that cannot be read costs no more than itself.
func TestReadMalformed(t *testing.T) {
	record := make([]byte, sizeofInetDiagMsg)
	record[0], record[1] = linuxInet, tcpListen
	var s Snapshot
	err := readWhole(&tables[0], &s, func(each func([]byte)) (bool, error) {
		each(record)
		each(record[:50])
		each(record)
		return false, nil
	})
	if err != nil || len(s.Conns) != 2 || len(s.Warnings) != 1 || s.Warnings[0].Error() != "sock_diag: tcp: record 2: record is cut short" {
		t.Errorf("%d sockets, %v, %v", len(s.Conns), s.Warnings, err)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	forSources(t, func(t *testing.T, src Source) {
		if s, err := src.Snapshot(ctx, Query{Kind: conn.KindAll}); !errors.Is(err, context.Canceled) || s.Conns != nil {
			t.Errorf("got %v, %v", s.Conns, err)
		}
	})
}
