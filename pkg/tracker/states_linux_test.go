package tracker_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/conntrace/conntrace/pkg/conn"
	"github.com/conntrace/conntrace/pkg/tracker"
)

// TestStates: who asks for them gets every change of a connection's state, with both
// states, the addresses and the owner, and nobody else does.
func TestStates(t *testing.T) {
	tr := open(t, tracker.Config{States: true})
	p := connect(t, "tcp4", "127.0.0.1:0")
	local, remote := addr(p.client.LocalAddr()), addr(p.client.RemoteAddr())
	ports := []uint16{local.Port()}
	with := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: ports, Events: []conn.EventType{conn.EventState, conn.EventClose}})
	without := subscribe(t, tr, tracker.Filter{NoSeed: true, Ports: ports})
	unfiltered := subscribe(t, tr, tracker.Filter{NoSeed: true})

	p.client.Close()
	read(t, p.server, 0)
	p.server.Close()

	var client, server []string
	var last conn.Event
	for closes := 0; closes < 2; {
		e := with.next("event", func(*conn.Event) bool { return true })
		if e.Type == conn.EventClose {
			closes++
			if last.Type != conn.EventState || last.Status != conn.StatusClose || last.Cookie != e.Cookie {
				t.Errorf("%s comes after %s, not after its change of state", describe(&e), describe(&last))
			}
		}
		last = e
		if e.Type != conn.EventState {
			continue
		}
		change := e.OldStatus.String() + " " + e.Status.String()
		wantFD := int32(-1)
		switch {
		case e.Laddr == local && e.Raddr == remote && e.Direction == conn.Outbound:
			client = append(client, change)
			wantFD = 0
		case e.Laddr == remote && e.Raddr == local && e.Direction == conn.Inbound:
			server = append(server, change)
			wantFD = acceptedFD(tr, 0)
		default:
			t.Errorf("%s %s: whose is it?", change, describe(&e))
		}
		if e.PID != int32(os.Getpid()) || e.Process == nil || e.FD < wantFD {
			t.Errorf("%s of process %d, descriptor %d", change, e.PID, e.FD)
		}
	}
	wantClient := []string{"ESTABLISHED FIN_WAIT1", "FIN_WAIT1 FIN_WAIT2", "FIN_WAIT2 CLOSE"}
	wantServer := []string{"ESTABLISHED CLOSE_WAIT", "CLOSE_WAIT LAST_ACK", "LAST_ACK CLOSE"}
	if !slices.Equal(client, wantClient) || !slices.Equal(server, wantServer) {
		t.Errorf("the client's changes: %q, the server's: %q", client, server)
	}

	for name, s := range map[string]*stream{"without": without, "unfiltered": unfiltered} {
		for _, e := range s.rest(tr) {
			if e.Type == conn.EventState {
				t.Errorf("%s: %s, which was not asked for", name, describe(&e))
			}
		}
	}
}

// TestStatesOpening: a connection's first changes are told with what made them.
func TestStatesOpening(t *testing.T) {
	tr := open(t, tracker.Config{States: true})
	all := []conn.EventType{conn.EventListen, conn.EventConnect, conn.EventAccept, conn.EventState}
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Events: all})
	p := connect(t, "tcp4", "127.0.0.1:0")
	listener, client := addr(p.listener.Addr()), addr(p.client.LocalAddr())

	var got []string
	for len(got) < 7 {
		e := s.next("event", func(e *conn.Event) bool { return e.Laddr == listener || e.Laddr == client })
		what := e.Type.String()
		if e.Type == conn.EventState {
			what += " " + e.OldStatus.String() + " " + e.Status.String() + " " + e.Direction.String()
		}
		got = append(got, what)
	}
	want := []string{
		"state CLOSE LISTEN unknown", "listen",
		"state SYN_SENT ESTABLISHED outbound", "connect",
		"state LISTEN SYN_RECV inbound", "state SYN_RECV ESTABLISHED inbound", "accept",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestStatesRefused: state events have to be asked for when the tracker is opened,
// and cannot be had by polling.
func TestStatesRefused(t *testing.T) {
	states := tracker.Filter{Events: []conn.EventType{conn.EventState}}
	if _, err := open(t, tracker.Config{}).Subscribe(states); err == nil || !strings.Contains(err.Error(), "Config.States") {
		t.Errorf("Subscribe: %v", err)
	}
	_, err := tracker.Open(t.Context(), tracker.Config{Source: tracker.SourceProcfs, States: true})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.HasPrefix(err.Error(), "procfs: ") {
		t.Errorf("Open: %v", err)
	}
}

// TestStatesOfChild: a listener's child is not taken for its listener, whose cookie it
// has for a moment in older kernels.
func TestStatesOfChild(t *testing.T) {
	tr := open(t, tracker.Config{States: true})
	s := subscribe(t, tr, tracker.Filter{NoSeed: true, Events: []conn.EventType{conn.EventListen, conn.EventState}})
	p := connect(t, "tcp4", "127.0.0.1:0")
	listener := s.next("listen", func(e *conn.Event) bool { return e.Laddr == addr(p.listener.Addr()) && e.Type == conn.EventListen })
	child := s.next("SYN_RECV", func(e *conn.Event) bool {
		return e.OldStatus == conn.StatusListen && e.Status == conn.StatusSynRecv && e.Laddr.Port() == listener.Laddr.Port()
	})
	if child.Cookie == listener.Cookie || child.Direction != conn.Inbound || child.PID != 0 {
		t.Errorf("%s has the cookie %d, its listener %d", describe(&child), child.Cookie, listener.Cookie)
	}
	rows, err := tr.Connections(conn.KindTCP4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Cookie == listener.Cookie && r.Status != conn.StatusListen {
			t.Errorf("the listener is a row in %v", r.Status)
		}
	}
}
