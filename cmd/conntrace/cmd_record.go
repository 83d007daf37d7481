package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/conntrace/conntrace/pkg/fallback"
	"github.com/spf13/cobra"
)

func newRecordCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "record DIR",
		Short: "Record what the system says of sockets, to test decoders with",
		Long: `Saves the raw socket tables of the system in the folder DIR, which must be new or
empty, with the rows that conntrace makes of them (rows.json) and where they are
from (manifest.json: system, kernel release, architecture, version of conntrace,
time). conntrace is tested with such folders from systems that its authors do not
have: please send one in, the more so if its rows are wrong.

conntrace opens a few sockets on the loopback interface for it, and records those
only. In a folder are: their addresses and ports, the path of a unix socket in the
folder for temporary files, process, user and descriptor numbers of conntrace
itself, and, on the BSDs and macOS, addresses of the kernel's memory or hashes of
such. With --all it is every socket that you may see, with all of its addresses:
nothing is masked. Think before you send that.

Exit status: 0 done; 1 failed; 2 wrong use; 4 permission denied.`,
		Example: `  conntrace record freebsd-15
  sudo conntrace record --all everything`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageErrorf("which folder? record takes one argument")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return record(cmd, args[0], all)
		},
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs),
	}
	cmd.Flags().BoolVar(&all, "all", false, "every socket that may be seen, not just some that conntrace opens")
	return cmd
}

func record(cmd *cobra.Command, dir string, all bool) error {
	pid := int32(0)
	if !all {
		pid = int32(os.Getpid())
		samples, missing := openSamples()
		defer samples.close()
		for _, err := range missing {
			say(cmd.ErrOrStderr(), "not in the recording: %v", err)
		}
	}
	recording, err := fallback.Record(cmd.Context(), pid, readVersion().Version)
	if err != nil {
		return err
	}
	if err := recording.Write(dir); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", dir, count(len(recording.Manifest.Tables), "table", "tables"))
	return err
}

// samples are sockets of most kinds and in most states that a process can keep them in.
type samples struct {
	sockets []interface{ Close() error }
	dir     string // of unix sockets
}

func (s *samples) close() {
	for _, socket := range s.sockets {
		socket.Close()
	}
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// openSamples opens the samples. missing says which ones this system cannot have, IPv6
// for instance.
func openSamples() (s samples, missing []error) {
	try := func(what string, err error) {
		if err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", what, err))
		}
	}
	for _, network := range []string{"4", "6"} {
		loopback := map[string]string{"4": "127.0.0.1:0", "6": "[::1]:0"}[network]
		try("TCP over IPv"+network, s.stream("tcp"+network, loopback))
		try("UDP over IPv"+network, s.datagram("udp"+network, loopback))
	}
	var err error
	if s.dir, err = os.MkdirTemp("", "conntrace"); err == nil {
		err = s.stream("unix", filepath.Join(s.dir, "stream"))
	}
	try("unix sockets", err)
	if err == nil {
		var socket *net.UnixConn
		if socket, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(s.dir, "datagram"), Net: "unixgram"}); err == nil {
			s.sockets = append(s.sockets, socket)
		}
		try("unix datagram sockets", err)
	}
	return s, missing
}

// stream opens a listener, a connection to it, and another one that is closed at one of
// its ends.
func (s *samples) stream(network, address string) error {
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	s.sockets = append(s.sockets, l)
	for i := range 2 {
		client, err := net.Dial(network, l.Addr().String())
		if err != nil {
			return err
		}
		s.sockets = append(s.sockets, client)
		server, err := l.Accept()
		if err != nil {
			return err
		}
		s.sockets = append(s.sockets, server)
		if half, ok := client.(interface{ CloseWrite() error }); ok && i == 1 {
			if err := half.CloseWrite(); err != nil {
				return err
			}
			// The FIN has arrived when the other end reads to the end.
			if n, err := server.Read(make([]byte, 1)); n != 0 || err == nil {
				return errors.New("a connection that was closed still has data")
			}
		}
	}
	return nil
}

// datagram opens a socket and another one that is connected to it.
func (s *samples) datagram(network, address string) error {
	server, err := net.ListenPacket(network, address)
	if err != nil {
		return err
	}
	s.sockets = append(s.sockets, server)
	client, err := net.Dial(network, server.LocalAddr().String())
	if err != nil {
		return err
	}
	s.sockets = append(s.sockets, client)
	return nil
}
