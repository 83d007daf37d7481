package tracker

import (
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/internal/cgroup2"
	"github.com/conntrace/conntrace/internal/tracepoint"
)

// hooks are the tracker's programs in the kernel. Everything in it is gone when
// its descriptors are closed; nothing is pinned.
type hooks struct {
	spec      *ebpf.CollectionSpec
	variables map[string]any // to set before programs are loaded
	types     *btf.Cache
	shared    *ebpf.Collection   // the maps, without programs
	loaded    []*ebpf.Collection // the programs, one for each tier and each cover
	counted   []*ebpf.Program    // those at which the kernel may skip an event: all but covers (bpf/maps.h)
	covers    int                // how many of them there are to be
	closers   []func() error
	info      []Hook
	refused   []Refusal
	limits    []string
}

// A purpose is something to see, and the tiers by which it can be seen, best first.
type purpose struct {
	name    string
	tiers   []tier
	without string // what cannot be seen without it; "" if there is no tracker without it
}

// A tier is one way of seeing something: programs that go together.
type tier struct {
	name      string // for Config.Hooks; "" if it is not for choice
	programs  []string
	cover     string         // the program that covers the others, if there is one (bpf/maps.h)
	variables map[string]any // for these programs and those that are loaded later
	cookies   bool           // the programs cannot ask for cookies
	unfit     error          // why it is of no use here; nil if it may be
	limits    []string       // what cannot be seen this way
}

// What some tiers cannot see.
const (
	processLimit = "that a process has forked, run another program or exited shows only once descriptors are looked at again (Connections)"
	connectLimit = "an attempt to connect that fails before anything is sent makes no event"
	uringLimit   = "a connection that is accepted through io_uring shows without its process until descriptors are looked at again (Connections)"
	fdLimit      = "the descriptor of an accepted connection is known only once descriptors are looked at again (Connections)"
	waitingLimit = "a call of accept that was waiting already when the tracker was opened makes no event: its connection has no process until descriptors are looked at again (Connections)"
	kprobeLimit  = "an accept is missed, uncounted, if 4,096 of them wait already, or if the kernel runs another tool's probe at that moment"
	guardLimit   = "a state that changes in a softirq while the CPU runs a BPF program of another tracepoint or kprobe is missed: the kernel skips ours then, and counts that from Linux 6.7 on"
	cookieLimit  = "a socket that was made, but not used yet, when the tracker was opened, and a listener of MPTCP, may be missing until descriptors are looked at again (Connections)"
	cgroupLimit  = "sockets of processes outside this cgroup namespace may have no cookies: they make events, and are missing from Connections"
)

// purposes returns what a tracker sees, in the order in which the programs are to be
// attached: states last, so that a socket that is seen has all else of it seen too.
func purposes(k kernel) []purpose {
	fexit, exit := tier{
		name:   "fexit",
		limits: []string{fdLimit, waitingLimit},
	}, tier{
		name:     "syscall",
		programs: []string{bpf.TrackerProgSysExitAccept},
	}
	switch {
	case k.acceptErr != nil:
		fexit.unfit = k.acceptErr
	case k.acceptParameters == 2:
		fexit.programs = []string{bpf.TrackerProgInetCskAccept2} // since 6.10
	case k.acceptParameters == 4:
		fexit.programs = []string{bpf.TrackerProgInetCskAccept4}
	default:
		fexit.unfit = fmt.Errorf("inet_csk_accept has %d parameters: %w", k.acceptParameters, errors.ErrUnsupported)
	}

	return []purpose{{
		name: "processes",
		tiers: []tier{{programs: []string{
			bpf.TrackerProgSchedProcessFork, bpf.TrackerProgSchedProcessExec, bpf.TrackerProgSchedProcessExit,
		}}},
		without: processLimit,
	}, {
		name: acceptPurpose,
		tiers: []tier{fexit, {
			name:     "kretprobe",
			programs: []string{bpf.TrackerProgInetCskAcceptReturn},
			unfit:    k.registersErr,
			limits:   []string{fdLimit, waitingLimit, kprobeLimit},
		}, exit},
	}, {
		name: "connect",
		tiers: []tier{{
			name:      "fexit",
			programs:  []string{bpf.TrackerProgInetStreamConnect},
			variables: map[string]any{bpf.TrackerVarConnectBy: uint32(bpf.TrackerConnectTierCONNECT_TYPED)},
		}, {
			name:     "syscall",
			programs: []string{bpf.TrackerProgSysExitConnect},
			variables: map[string]any{
				bpf.TrackerVarConnectBy:     uint32(bpf.TrackerConnectTierCONNECT_CALL),
				bpf.TrackerVarConnectNumber: uint32(unix.SYS_CONNECT),
			},
			unfit: k.registersErr, // the call's arguments
		}},
		without: connectLimit,
	}, {
		name: statesPurpose,
		tiers: []tier{{
			name:     "tp_btf",
			programs: []string{bpf.TrackerProgInetSockSetState},
			cover:    bpf.TrackerProgInetSockSetStateCover,
			cookies:  !k.cookieHelper,
		}, {
			name:     "raw_tp",
			programs: []string{bpf.TrackerProgInetSockSetStateRaw},
			cover:    bpf.TrackerProgInetSockSetStateRawCover,
			cookies:  true,
		}, {
			name:     "tracepoint",
			programs: []string{bpf.TrackerProgInetSockSetStateEvent},
			cookies:  true,
			limits:   []string{guardLimit},
		}},
	}}
}

const (
	acceptPurpose = "accept"
	statesPurpose = "tcp states"
)

// uringPurpose goes with accepts that are seen at the exit of the system call.
func uringPurpose(k kernel) purpose {
	t := tier{unfit: fmt.Errorf("%w by this kernel", errors.ErrUnsupported)}
	switch k.uringParameters {
	case 3: // from 6.12 on; before 5.12 too, but with neither request nor a result of that type
		if k.cast {
			t = tier{programs: []string{bpf.TrackerProgIoUringComplete}}
		}
	case 6, 7: // from 5.19 on
		t = tier{programs: []string{bpf.TrackerProgIoUringCompleteResult}}
	}
	return purpose{name: "accept by io_uring", tiers: []tier{t}, without: uringLimit}
}

// cookiePurpose has the kernel give a socket its cookie before any state is told.
var cookiePurpose = purpose{
	name: "cookies",
	tiers: []tier{{
		programs: []string{bpf.TrackerProgSockOps, bpf.TrackerProgSockCreate},
		limits:   []string{cookieLimit},
	}},
}

// A kernel is what the running kernel's BTF says of it.
type kernel struct {
	acceptParameters int // of inet_csk_accept()
	acceptErr        error
	uringParameters  int   // of the tracepoint io_uring_complete; 0: it has none
	cookieHelper     bool  // tracing programs may ask for cookies
	cast             bool  // bpf_rdonly_cast()
	allocator        bool  // maps allocate memory of their own (bpf_mem_alloc)
	preemptible      bool  // a task may lose its CPU at a tracepoint, in a program and between two
	registersErr     error // why the registers of this architecture are not known
}

func readKernel(types *btf.Cache) (k kernel, err error) {
	spec, err := types.Kernel()
	if err != nil {
		return k, err
	}
	k.acceptParameters, k.acceptErr = parameters(spec, "inet_csk_accept")
	if n, err := parameters(spec, "btf_trace_io_uring_complete"); err == nil {
		const context = 1 // the first parameter of a tracepoint's probe
		k.uringParameters = n - context
	}
	k.cookieHelper = spec.TypeByName("bpf_get_socket_ptr_cookie", new(*btf.Func)) == nil
	k.cast = spec.TypeByName("bpf_rdonly_cast", new(*btf.Func)) == nil
	k.allocator = spec.TypeByName("bpf_mem_alloc", new(*btf.Struct)) == nil
	k.preemptible = spec.TypeByName("class_srcu_fast_notrace_t", new(*btf.Typedef)) == nil // since 7.0 the guard of tracepoints
	if registersSize[runtime.GOARCH] == 0 {
		k.registersErr = fmt.Errorf("registers of %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	return k, nil
}

// registersSize has the architectures whose registers the programs know (fd.h),
// with the size of a kernel stack (THREAD_SIZE) where that has four pages or fewer.
var registersSize = map[string]uint32{"amd64": 16 << 10, "arm64": 16 << 10}

// parameters returns how many parameters a kernel function has, or the function
// that a type points to, by BTF: a wrong prototype may load and give wrong values
// (kernel 6.1, inet_csk_accept).
func parameters(spec *btf.Spec, name string) (int, error) {
	var typ btf.Type
	var function *btf.Func
	var pointer *btf.Typedef
	if err := spec.TypeByName(name, &function); err == nil {
		typ = function.Type
	} else if err := spec.TypeByName(name, &pointer); err == nil {
		if p, ok := btf.UnderlyingType(pointer).(*btf.Pointer); ok {
			typ = p.Target
		}
	} else {
		return 0, err
	}
	proto, ok := typ.(*btf.FuncProto)
	if !ok {
		return 0, fmt.Errorf("%s has no prototype", name)
	}
	return len(proto.Params), nil
}

// attachHooks loads and attaches the programs, each purpose by the best tier that
// the kernel allows. What is allowed is found by trying.
func attachHooks(cfg Config) (*hooks, error) {
	// Before 5.11 maps are charged to this limit.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("%w: %w", errMemlock, err)
	}
	h, k, err := newHooks(cfg)
	if err != nil {
		return nil, err
	}
	for _, p := range purposes(k) {
		name, err := h.attachPurpose(p, cfg.Hooks)
		if err == nil && p.name == acceptPurpose && name == "syscall" {
			_, err = h.attachPurpose(uringPurpose(k), nil)
		}
		if err != nil {
			return nil, errors.Join(err, h.close())
		}
	}
	return h, nil
}

// newHooks creates the maps, and reads what the kernel says of itself meanwhile: both
// take a while.
func newHooks(cfg Config) (h *hooks, k kernel, err error) {
	types := btf.NewCache()
	var kernelErr error
	var wg sync.WaitGroup
	wg.Go(func() { k, kernelErr = readKernel(types) })
	spec, err := bpf.LoadTracker()
	var events *ebpf.Map
	if err == nil {
		spec.Maps[bpf.TrackerMapEvents].MaxEntries = uint32(cfg.RingBuffer)
		events, err = ebpf.NewMap(spec.Maps[bpf.TrackerMapEvents])
	}
	wg.Wait()
	if kernelErr != nil {
		err = kernelErr
	}
	if err != nil {
		events.Close()
		return nil, k, err
	}
	defer events.Close() // the collection has its own descriptor

	words := 1 << bits.Len(uint(cfg.MaxConnections-1))
	spec.Maps[bpf.TrackerMapOwners].MaxEntries = uint32(cfg.MaxConnections)
	spec.Maps[bpf.TrackerMapStates].MaxEntries = uint32(words)
	if !k.allocator {
		// Before 6.1 the kernel warns of programs at probes that allocate while they run,
		// and a machine with panic_on_warn ends there (check_map_prog_compatibility()).
		spec.Maps[bpf.TrackerMapOwners].Flags &^= unix.BPF_F_NO_PREALLOC
	}
	h = &hooks{spec: spec, types: types, covers: 1, variables: map[string]any{
		bpf.TrackerVarStatesMask:     uint32(words - 1),
		bpf.TrackerVarTellStates:     cfg.States,
		bpf.TrackerVarShutdownNumber: uint32(unix.SYS_SHUTDOWN),
		bpf.TrackerVarCookieHelper:   k.cookieHelper,
		bpf.TrackerVarConnectBy:      uint32(bpf.TrackerConnectTierCONNECT_UNSEEN),
	}}
	if k.preemptible {
		h.covers = 3
	}
	h.variables[bpf.TrackerVarOneCover] = h.covers == 1
	if size := registersSize[runtime.GOARCH]; size != 0 {
		h.variables[bpf.TrackerVarStackSize] = max(size, uint32(os.Getpagesize()))
	}
	h.shared, err = h.load(map[string]*ebpf.Map{bpf.TrackerMapEvents: events})
	return h, k, err
}

// load loads programs that use the shared maps, each time with constants of their own.
// One load at a time: what the kernel's modules say of their types must not be read by
// two goroutines (cilium/ebpf 0.22, btf.decoder.inflateType).
func (h *hooks) load(shared map[string]*ebpf.Map, programs ...string) (*ebpf.Collection, error) {
	spec := *h.spec
	spec.Programs = make(map[string]*ebpf.ProgramSpec, len(programs))
	for _, name := range programs {
		spec.Programs[name] = h.spec.Programs[name]
	}
	for name, value := range h.variables {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	return ebpf.NewCollectionWithOptions(&spec, ebpf.CollectionOptions{Cache: h.types, MapReplacements: shared})
}

// attachPurpose attaches the first tier of p that is not refused, and returns its
// name. If forced names tiers of p, no others will do. A purpose that a tracker can
// do without is left out if all are refused, and that is said.
func (h *hooks) attachPurpose(p purpose, forced []string) (string, error) {
	isForced := func(t tier) bool { return slices.Contains(forced, t.name) }
	only := slices.ContainsFunc(p.tiers, isForced)
	var errs []error
	for _, t := range p.tiers {
		if only && !isForced(t) {
			continue
		}
		err := h.attachTier(p.name, t)
		if err == nil {
			h.limits = append(h.limits, t.limits...)
			return t.name, nil
		}
		what := p.name
		if len(t.programs) > 0 {
			what = attachPoints[t.programs[0]][0]
		} else if t.name != "" {
			what += " by " + t.name
		}
		err = cause(err)
		h.refused = append(h.refused, refusal(what, err))
		errs = append(errs, fmt.Errorf("%s: %w", what, err))
	}
	if p.without == "" || only {
		return "", errors.Join(errs...)
	}
	h.limits = append(h.limits, p.without)
	return "", nil
}

// attachTier loads and attaches all programs of a tier, or none.
func (h *hooks) attachTier(purpose string, t tier) (err error) {
	if t.unfit != nil {
		return t.unfit
	}
	before := *h
	before.variables = maps.Clone(h.variables)
	defer func() {
		if err != nil {
			for _, c := range h.closers[len(before.closers):] {
				err = errors.Join(err, c())
			}
			for _, c := range h.loaded[len(before.loaded):] {
				c.Close()
			}
			before.refused = h.refused
			*h = before
		}
	}()
	if t.cookies {
		if _, err := h.attachPurpose(cookiePurpose, nil); err != nil {
			return err
		}
		if !cgroup2.InitialNamespace() {
			h.limits = append(h.limits, cgroupLimit)
		}
	}
	maps.Copy(h.variables, t.variables)
	if err := h.loadAndAttach(purpose, t.programs, true); err != nil {
		return err
	}
	if t.cover == "" {
		return nil
	}
	for range h.covers {
		if err := h.loadAndAttach(purpose, []string{t.cover}, false); err != nil {
			return err
		}
	}
	return nil
}

// loadAndAttach has the misses of the programs counted, or not.
func (h *hooks) loadAndAttach(purpose string, names []string, counted bool) error {
	shared := maps.Clone(h.shared.Maps)
	delete(shared, ".rodata") // the constants
	c, err := h.load(shared, names...)
	if err != nil {
		return err
	}
	h.loaded = append(h.loaded, c)
	for _, name := range names {
		if err := h.attach(purpose, name, c.Programs[name]); err != nil {
			return err
		}
		if counted {
			h.counted = append(h.counted, c.Programs[name])
		}
	}
	return nil
}

// attachPoints has the attach points of each program, in libbpf's notation.
var attachPoints = map[string][]string{
	bpf.TrackerProgInetSockSetState:         {"tp_btf/inet_sock_set_state"},
	bpf.TrackerProgInetSockSetStateCover:    {"tp_btf/inet_sock_set_state"},
	bpf.TrackerProgInetSockSetStateRaw:      {"raw_tp/inet_sock_set_state"},
	bpf.TrackerProgInetSockSetStateRawCover: {"raw_tp/inet_sock_set_state"},
	bpf.TrackerProgInetSockSetStateEvent:    {"tracepoint/sock/inet_sock_set_state"},
	bpf.TrackerProgSockCreate:               {"cgroup/sock_create"},
	bpf.TrackerProgSockOps:                  {"sockops"},
	bpf.TrackerProgInetCskAccept2:           {"fexit/inet_csk_accept"},
	bpf.TrackerProgInetCskAccept4:           {"fexit/inet_csk_accept"},
	bpf.TrackerProgInetCskAcceptReturn:      {"kretprobe/inet_csk_accept"},
	bpf.TrackerProgSysExitAccept:            {"tracepoint/syscalls/sys_exit_accept4", "tracepoint/syscalls/sys_exit_accept"},
	bpf.TrackerProgIoUringComplete:          {"tp_btf/io_uring_complete"},
	bpf.TrackerProgIoUringCompleteResult:    {"tp_btf/io_uring_complete"},
	bpf.TrackerProgInetStreamConnect:        {"fexit/__inet_stream_connect"},
	bpf.TrackerProgSysExitConnect:           {"tracepoint/syscalls/sys_exit_connect"},
	bpf.TrackerProgSchedProcessFork:         {"tp_btf/sched_process_fork"},
	bpf.TrackerProgSchedProcessExec:         {"tp_btf/sched_process_exec"},
	bpf.TrackerProgSchedProcessExit:         {"tp_btf/sched_process_exit"},
}

// attach attaches a program at each of its points.
func (h *hooks) attach(purpose, name string, program *ebpf.Program) error {
	var id ebpf.ProgramID
	if info, err := program.Info(); err == nil {
		id, _ = info.ID()
	}
	for _, where := range attachPoints[name] {
		closer, err := attachProgram(where, program)
		if err != nil {
			return fmt.Errorf("attach %s: %w", where, err)
		}
		h.closers = append(h.closers, closer)
		h.info = append(h.info, Hook{Purpose: purpose, Attach: where, Program: uint32(id)})
	}
	return nil
}

// attachProgram attaches program at an attach point, until what it returns is called.
func attachProgram(where string, program *ebpf.Program) (func() error, error) {
	_, place, _ := strings.Cut(where, "/")
	var c interface{ Close() error }
	var err error
	switch program.Type() {
	case ebpf.Tracing:
		c, err = link.AttachTracing(link.TracingOptions{Program: program})
	case ebpf.RawTracepoint:
		c, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: place, Program: program})
	case ebpf.TracePoint:
		group, name, _ := strings.Cut(place, "/")
		c, err = tracepoint.Attach(group, name, program)
	case ebpf.Kprobe:
		c, err = attachKretprobe(place, program)
	case ebpf.CGroupSock:
		c, err = attachCgroup(ebpf.AttachCGroupInetSockCreate, program)
	case ebpf.SockOps:
		c, err = attachCgroup(ebpf.AttachCGroupSockOps, program)
	default:
		err = fmt.Errorf("program type %s: %w", program.Type(), errors.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	return c.Close, nil
}

// attachKretprobe has room for as many calls that have not returned yet as the
// kernel allows (KRETPROBE_MAXACTIVE_MAX): they wait there for connections. That takes
// tracefs, in which an idle probe stays behind if this process is killed; without it,
// the kernel's default must do: twice the number of CPUs, or ten.
func attachKretprobe(function string, program *ebpf.Program) (link.Link, error) {
	l, err := link.Kretprobe(function, program, &link.KprobeOptions{RetprobeMaxActive: 4096})
	if err != nil {
		return link.Kretprobe(function, program, nil)
	}
	return l, nil
}

// attachCgroup attaches a program to the root of all cgroups, beside others.
func attachCgroup(where ebpf.AttachType, program *ebpf.Program) (link.Link, error) {
	root, err := cgroup2.OpenRoot()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	return link.AttachRawLink(link.RawLinkOptions{Target: root, Program: program, Attach: where})
}

// accounts is the variable of that name in bpf/maps.h.
type accounts [128]bpf.TrackerAccount

// account returns the kernel side's part of the account: Seen and Lost.
func (h *hooks) account() (s Stats, err error) {
	// Misses first: each is covered a moment after it is counted.
	missed, err := h.missed()
	if err != nil {
		return s, err
	}
	var all accounts
	if err := h.shared.Variables[bpf.TrackerVarAccounts].Get(&all); err != nil {
		return s, fmt.Errorf("read the hooks' account: %w", err)
	}
	var covered uint64
	for _, a := range all {
		s.Seen += a.Seen
		s.Lost.RingFull += a.RingFull
		s.Lost.MapFull += a.MapFull
		covered += a.Covered
	}
	if missed > covered {
		s.Lost.Recursion = missed - covered
		s.Seen += s.Lost.Recursion
	}
	return s, nil
}

// missed returns how often the kernel did not run a program, covers aside, as it was
// running on that CPU already. Kernels before 5.12 do not count that, nor, at a classic
// tracepoint, those before 6.7.
func (h *hooks) missed() (n uint64, err error) {
	for _, p := range h.counted {
		stats, err := p.Stats()
		if err != nil {
			return 0, fmt.Errorf("read the misses of a hook: %w", err)
		}
		n += stats.RecursionMisses
	}
	return n, nil
}

// detach takes the programs off their hooks; their maps can still be read.
func (h *hooks) detach() error {
	var errs []error
	for _, c := range h.closers {
		errs = append(errs, c())
	}
	h.closers = nil
	return errors.Join(errs...)
}

func (h *hooks) close() error {
	err := h.detach()
	for _, c := range h.loaded {
		c.Close()
	}
	h.shared.Close()
	return err
}
