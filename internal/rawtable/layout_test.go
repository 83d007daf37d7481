package rawtable

import (
	"bytes"
	"debug/elf"
	"debug/macho"
	"encoding/binary"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/conntrace/conntrace/internal/testenv"
)

var update = flag.Bool("update", false, "write the tables that the layouts give to testdata")

// A target is a system on an architecture. The files in testdata/FIXTURES are the tables
// that testdata/layout/SOURCE.c describes, compiled for its ABI; architectures with the
// same layouts share them.
type target struct {
	goos, goarch   string
	triple, source string
	fixtures       string
	constants      map[string]int
	tables         map[string]string // symbols in the source, to names of tables
}

// clone returns c with others in the place of some.
func clone(c map[string]int, others map[string]int) map[string]int {
	all := make(map[string]int)
	for name, n := range c {
		all[name] = n
	}
	for name, n := range others {
		all[name] = n
	}
	return all
}

// freebsdConstants returns the constants for an architecture, and others in the place of
// some.
func freebsdConstants(goarch string, others map[string]int) map[string]int {
	proc := freebsdProcs[goarch]
	return clone(clone(freebsdOffsets, map[string]int{
		"freebsdProcSize": proc.size, "freebsdProcPID": proc.pid, "freebsdProcRUID": proc.ruid,
		"freebsdProcStartSec": proc.startSec, "freebsdProcStartUsec": proc.startUsec, "freebsdProcComm": proc.comm,
	}), others)
}

var freebsdOffsets = map[string]int{
	"freebsdInpGenSize": freebsdInpGenSize, "freebsdUnpGenSize": freebsdUnpGenSize,
	"freebsdInpcbSize": freebsdInpcbSize, "freebsdInpcbSocket": freebsdInpcbSocket, "freebsdInpcbFamily": freebsdInpcbFamily,
	"freebsdInpcbUID": freebsdInpcbUID, "freebsdInpcbType": freebsdInpcbType, "freebsdInpcbFport": freebsdInpcbFport,
	"freebsdInpcbLport": freebsdInpcbLport, "freebsdInpcbFaddr": freebsdInpcbFaddr, "freebsdInpcbLaddr": freebsdInpcbLaddr,
	"freebsdInpcbVflag": freebsdInpcbVflag, "freebsdTcpcbSize": freebsdTcpcbSize, "freebsdTcpcbInpcb": freebsdTcpcbInpcb,
	"freebsdTcpcbState": freebsdTcpcbState, "freebsdUnpcbSize": freebsdUnpcbSize, "freebsdUnpcbAddr": freebsdUnpcbAddr,
	"freebsdUnpcbSocket": freebsdUnpcbSocket, "freebsdUnpcbUID": freebsdUnpcbUID, "freebsdUnpcbType": freebsdUnpcbType,
	"sunPath": sunPath, "freebsdFileSize": freebsdFileSize, "freebsdFilePID": freebsdFilePID, "freebsdFileFD": freebsdFileFD,
	"freebsdFileType": freebsdFileType, "freebsdFileData": freebsdFileData,
}

var openbsdConstants = map[string]int{
	"openbsdFileKernelSize": 632, "openbsdFileType": openbsdFileType, "openbsdFileData": openbsdFileData,
	"openbsdFileSoType": openbsdFileSoType, "openbsdFileFamily": openbsdFileFamily,
	"openbsdFileLport": openbsdFileLport, "openbsdFileLaddr": openbsdFileLaddr, "openbsdFileFport": openbsdFileFport,
	"openbsdFileFaddr": openbsdFileFaddr, "openbsdFilePID": openbsdFilePID, "openbsdFileFD": openbsdFileFD,
	"openbsdFileComm": openbsdFileComm, "openbsdFilePath": openbsdFilePath, "openbsdFileState": openbsdFileState,
}

var netbsdConstants = map[string]int{
	"netbsdFileSize": NetBSDFileSize, "netbsdFileType": netbsdFileType, "netbsdFileData": netbsdFileData,
	"netbsdFilePID": netbsdFilePID, "netbsdFileFD": netbsdFileFD, "netbsdPcbSize": NetBSDPcbSize,
	"netbsdPcbSocket": netbsdPcbSocket, "netbsdPcbFamily": netbsdPcbFamily, "netbsdPcbType": netbsdPcbType,
	"netbsdPcbState": netbsdPcbState, "netbsdPcbSrc": netbsdPcbSrc, "netbsdPcbDst": netbsdPcbDst,
	"netbsdSockaddrSize": netbsdSockaddrSize, "sockaddrPort": sockaddrPort, "sockaddrIPv4": sockaddrIPv4,
	"sockaddrIPv6": sockaddrIPv6, "sunPath": sunPath,
}

var illumosConstants = map[string]int{
	"illumosTCP4Size": illumosTCP4Size, "illumosTCP4State": illumosTCP4State, "illumosTCP4Laddr": illumosTCP4Laddr,
	"illumosTCP4Lport": illumosTCP4Lport, "illumosTCP4Raddr": illumosTCP4Raddr, "illumosTCP4Rport": illumosTCP4Rport,
	"illumosTCP4PID": illumosTCP4PID, "illumosTCP6Size": illumosTCP6Size, "illumosTCP6Laddr": illumosTCP6Laddr,
	"illumosTCP6Lport": illumosTCP6Lport, "illumosTCP6Raddr": illumosTCP6Raddr, "illumosTCP6Rport": illumosTCP6Rport,
	"illumosTCP6State": illumosTCP6State, "illumosTCP6PID": illumosTCP6PID, "illumosUDP4Size": illumosUDP4Size,
	"illumosUDP4Laddr": illumosUDP4Laddr, "illumosUDP4Lport": illumosUDP4Lport, "illumosUDP4PID": illumosUDP4PID,
	"illumosUDP6Size": illumosUDP6Size, "illumosUDP6Laddr": illumosUDP6Laddr, "illumosUDP6Lport": illumosUDP6Lport,
	"illumosUDP6PID": illumosUDP6PID, "illumosOpthdrSize": IllumosOpthdrSize, "illumosOptmgmtSize": IllumosOptmgmtSize,
}

var darwinConstants = map[string]int{
	"darwinFDSize": DarwinFDSize, "darwinFDNumber": darwinFDNumber, "darwinFDType": darwinFDType,
	"darwinSocketSize": DarwinSocketSize, "darwinSocketSo": darwinSocketSo, "darwinSocketType": darwinSocketType,
	"darwinSocketFamily": darwinSocketFamily, "darwinSocketKind": darwinSocketKind, "darwinSocketFport": darwinSocketFport,
	"darwinSocketLport": darwinSocketLport, "darwinSocketVflag": darwinSocketVflag, "darwinSocketFaddr": darwinSocketFaddr,
	"darwinSocketLaddr": darwinSocketLaddr, "darwinSocketState": darwinSocketState, "darwinSocketAddr": darwinSocketAddr,
	"darwinSocketCaddr": darwinSocketCaddr, "sunPath": sunPath, "darwinProcSize": DarwinProcSize, "darwinProcPID": darwinProcPID,
	"darwinProcRUID": darwinProcRUID, "darwinProcComm": darwinProcComm, "darwinProcStartSec": darwinProcStartSec,
	"darwinProcStartUsec": darwinProcStartUsec, "darwinGenSize": darwinGenSize, "darwinInpcbSize": darwinInpcbSize,
	"darwinInpcbFport": darwinInpcbFport, "darwinInpcbLport": darwinInpcbLport, "darwinInpcbVflag": darwinInpcbVflag,
	"darwinInpcbFaddr": darwinInpcbFaddr, "darwinInpcbLaddr": darwinInpcbLaddr, "darwinXsocketSize": darwinXsocketSize,
	"darwinXsocketSize21": darwinXsocketSize21, "darwinXsocketSo": darwinXsocketSo, "darwinXsocketType": darwinXsocketType,
	"darwinXsocketFamily": darwinXsocketFamily, "darwinXsocketUID": darwinXsocketUID, "darwinTcpcbSize": darwinTcpcbSize,
	"darwinTcpcbState": darwinTcpcbState, "darwinUnpcbSize": darwinUnpcbSize, "darwinUnpcbAddr": darwinUnpcbAddr,
	"darwinUnpcbCaddr": darwinUnpcbCaddr,
	// What others measured of real tables: the parts of a socket, each padded.
	"tcp_group_size": 616, "udp_group_size": 408, "udp_group_21_size": 384,
}

var (
	freebsdFixtures = map[string]string{"tcp": FreeBSDTCP, "udp": FreeBSDUDP, "unix_stream": FreeBSDUnixStream, "files": FreeBSDFiles}
	openbsdFixtures = map[string]string{"files": OpenBSDFiles}
	netbsdFixtures  = map[string]string{"tcp4": NetBSDTCP4, "tcp6": NetBSDTCP6, "udp4": NetBSDUDP4, "unix_stream": NetBSDUnixStream, "files": NetBSDFiles}
	illumosFixtures = map[string]string{"tcp4": IllumosTCP4, "tcp6": IllumosTCP6, "udp4": IllumosUDP4, "udp6": IllumosUDP6}
	darwinFixtures  = map[string]string{"proc_pidfdinfo": DarwinHeld, "tcp": DarwinTCP, "udp": DarwinUDP, "unix_stream": DarwinUnixStream, "udp_21": "udp-darwin-21"}
)

var targets = []target{
	{"darwin", "amd64", "x86_64-apple-darwin", "darwin", "darwin", darwinConstants, darwinFixtures},
	{"darwin", "arm64", "arm64-apple-darwin", "darwin", "darwin", darwinConstants, darwinFixtures},
	{"freebsd", "amd64", "x86_64-unknown-freebsd", "freebsd", "freebsd", freebsdConstants("amd64", nil), freebsdFixtures},
	{"freebsd", "arm64", "aarch64-unknown-freebsd", "freebsd", "freebsd", freebsdConstants("arm64", nil), freebsdFixtures},
	{"freebsd", "arm", "armv7-unknown-freebsd-gnueabihf", "freebsd", "freebsd", freebsdConstants("arm", nil), freebsdFixtures},
	{"freebsd", "riscv64", "riscv64-unknown-freebsd", "freebsd", "freebsd", freebsdConstants("riscv64", nil), freebsdFixtures},
	{"freebsd", "386", "i386-unknown-freebsd", "freebsd", "freebsd-386", freebsdConstants("386", map[string]int{"freebsdInpcbVflag": freebsdInpcbVflag386}), freebsdFixtures},
	{"openbsd", "amd64", "x86_64-unknown-openbsd", "openbsd", "openbsd", openbsdConstants, openbsdFixtures},
	{"openbsd", "arm64", "aarch64-unknown-openbsd", "openbsd", "openbsd", openbsdConstants, openbsdFixtures},
	{"openbsd", "386", "i386-unknown-openbsd", "openbsd", "openbsd-386", clone(openbsdConstants, map[string]int{
		"openbsdFileKernelSize": 624, "openbsdFilePath": openbsdFilePath386, "openbsdFileState": openbsdFileState386}), openbsdFixtures},
	{"netbsd", "amd64", "x86_64-unknown-netbsd", "netbsd", "netbsd", netbsdConstants, netbsdFixtures},
	{"netbsd", "arm64", "aarch64-unknown-netbsd", "netbsd", "netbsd", netbsdConstants, netbsdFixtures},
	{"netbsd", "386", "i386-unknown-netbsdelf", "netbsd", "netbsd", netbsdConstants, netbsdFixtures},
	{"illumos", "amd64", "x86_64-pc-solaris", "illumos", "illumos", illumosConstants, illumosFixtures},
}

// TestLayouts compiles the kernels' structs for the ABI of every target. The compiler
// must lay them out as the decoders have it, and the tables in testdata, which the
// other tests decode, must be what it makes of them.
func TestLayouts(t *testing.T) {
	clang, err := exec.LookPath("clang-14")
	if err != nil {
		testenv.Missing(t, "clang-14")
	}
	for _, target := range targets {
		t.Run(target.goos+"-"+target.goarch, func(t *testing.T) {
			t.Parallel()
			object := filepath.Join(t.TempDir(), "layout.o")
			source := filepath.Join("testdata", "layout", target.source+".c")
			cmd := exec.Command(clang, "--target="+target.triple, "-ffreestanding", "-nostdinc", "-Wall", "-Werror", "-c", source, "-o", object)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			layout, fixtures := symbols(t, object)
			for name, want := range target.constants {
				if got, ok := layout[name]; !ok || got != want {
					t.Errorf("%s is %d, the decoder has %d", name, got, want)
				}
			}
			for name := range layout {
				symbol, isTable := strings.CutSuffix(name, "_size")
				_, known := target.constants[name]
				if _, ok := target.tables[symbol]; !known && (!isTable || !ok) {
					t.Errorf("no decoder has %s", name)
				}
			}
			for symbol, name := range target.tables {
				table := fixtures[symbol][:layout[symbol+"_size"]]
				if size := layout["openbsdFileKernelSize"]; size != 0 {
					table = cutRecords(table, size, OpenBSDFileSize)
				}
				checkFile(t, filepath.Join("testdata", target.fixtures, name+".bin"), table)
			}
		})
	}
}

// cutRecords returns the beginnings of records, as OpenBSD gives them.
func cutRecords(table []byte, size, keep int) (cut []byte) {
	for ; len(table) >= size; table = table[size:] {
		cut = append(cut, table[:keep]...)
	}
	return cut
}

func checkFile(t *testing.T, name string, want []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the layouts give (%v): go test -run TestLayouts -update", name, err)
	}
}

// symbols returns the numbers in the section layout of an object, and the bytes from
// each symbol of the section fixture on.
func symbols(t *testing.T, object string) (layout map[string]int, fixtures map[string][]byte) {
	t.Helper()
	layout, fixtures = make(map[string]int), make(map[string][]byte)
	add := func(section, name string, data []byte) {
		switch section {
		case "layout":
			layout[name] = int(binary.LittleEndian.Uint32(data))
		case "fixture":
			fixtures[name] = data
		}
	}
	if f, err := macho.Open(object); err == nil {
		defer f.Close()
		for _, s := range f.Symtab.Syms {
			if s.Sect == 0 || strings.HasPrefix(s.Name, "ltmp") {
				continue // the assembler's own
			}
			section := f.Sections[s.Sect-1]
			data, err := section.Data()
			if err != nil {
				t.Fatal(err)
			}
			add(section.Name, strings.TrimPrefix(s.Name, "_"), data[s.Value-section.Addr:])
		}
		return layout, fixtures
	}
	f, err := elf.Open(object)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if elf.ST_TYPE(s.Info) != elf.STT_OBJECT {
			continue
		}
		section := f.Sections[s.Section]
		data, err := section.Data()
		if err != nil {
			t.Fatal(err)
		}
		add(section.Name, s.Name, data[s.Value:])
	}
	return layout, fixtures
}
