package procinfo

import (
	"errors"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/internal/testenv"
	"github.com/conntrace/conntrace/pkg/conn"
)

func newReader(t testing.TB) *Reader {
	t.Helper()
	r, err := New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLookupSelf(t *testing.T) {
	p, err := newReader(t).Lookup(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != int32(os.Getpid()) || p.Executable != exe || !p.HasUID || p.UID != uint32(os.Getuid()) {
		t.Errorf("got %+v", p)
	}
	if age := time.Since(p.Start); age < 0 || age > time.Hour {
		t.Errorf("started %v ago", age)
	}
	if comm, _ := os.ReadFile("/proc/self/comm"); p.Comm+"\n" != string(comm) {
		t.Errorf("comm %q, want %q", p.Comm, comm)
	}
}

// The kernel derives the field of /proc/PID/stat from start_boottime by dividing
// it by the length of a tick (nsec_to_clock_t), which FromBoot must repeat.
func TestFromBoot(t *testing.T) {
	r := newReader(t)
	p, err := r.Lookup(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	ns := uint64(p.Start.Sub(r.boot))
	for _, ns := range []uint64{ns, ns + 1, ns + tick - 1} {
		if got := r.FromBoot(ns); got != p.Start {
			t.Errorf("FromBoot(%d) = %v, want %v", ns, got, p.Start)
		}
	}
	if got := r.FromBoot(ns + tick); got.Equal(p.Start) {
		t.Errorf("FromBoot(%d) = %v: a tick too late", ns+tick, got)
	}
}

func TestStartIsPsutils(t *testing.T) {
	python := testenv.Psutil(t)
	p, err := newReader(t).Lookup(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(python, "-c", "import psutil; print(psutil.Process().parent().create_time())").Output()
	if err != nil {
		t.Fatal(err)
	}
	want, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		t.Fatal(err)
	}
	if got := float64(p.Start.UnixMilli()) / 1000; math.Abs(got-want) > 0.001 {
		t.Errorf("start %.2f, psutil says %.2f", got, want)
	}
}

func TestLookupNoSuchProcess(t *testing.T) {
	r := newReader(t)
	for _, pid := range []int32{-1, 0, math.MaxInt32} {
		if p, err := r.Lookup(pid); !errors.Is(err, conn.ErrNoSuchProcess) {
			t.Errorf("Lookup(%d) = %v, %v", pid, p, err)
		}
	}
	if exe := r.Executable(math.MaxInt32); exe != "" {
		t.Errorf("executable %q", exe)
	}
}

func TestLookupThread(t *testing.T) {
	runtime.LockOSThread() // the test's goroutine may still be on the leader
	defer runtime.UnlockOSThread()
	tid := make(chan int32)
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- int32(unix.Gettid())
		<-done
	}()
	defer close(done)
	id := <-tid
	if id == int32(os.Getpid()) {
		id = int32(unix.Gettid())
	}
	if p, err := newReader(t).Lookup(id); !errors.Is(err, conn.ErrNoSuchProcess) {
		t.Errorf("Lookup of a thread: %v, %v", p, err)
	}
}

func TestLookupInCgroup(t *testing.T) {
	testenv.Root(t)
	r := newReader(t)
	if r.cgroupDir == "" {
		testenv.Missing(t, "a cgroup2 mount")
	}
	dir, err := os.MkdirTemp(r.cgroupDir, "procinfo_test")
	if err != nil {
		testenv.Missing(t, "a writable cgroup2: "+err.Error())
	}
	t.Cleanup(func() { os.Remove(dir) })

	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Wait() })
	t.Cleanup(func() { child.Process.Kill() })
	if err := os.WriteFile(dir+"/cgroup.procs", strconv.AppendInt(nil, int64(child.Process.Pid), 10), 0); err != nil {
		t.Fatal(err)
	}

	p, err := r.Lookup(int32(child.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if p.Cgroup != st.Ino {
		t.Errorf("cgroup %d, want %d", p.Cgroup, st.Ino)
	}
}

func BenchmarkLookup(b *testing.B) {
	r := newReader(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Lookup(int32(os.Getpid())); err != nil {
			b.Fatal(err)
		}
	}
}
