package tracker

import (
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/conntrace/conntrace/bpf"
	"github.com/conntrace/conntrace/internal/tracepoint"
)

// hooks are the tracker's programs in the kernel. Everything in it is gone when
// its descriptors are closed; nothing is pinned.
type hooks struct {
	collection *ebpf.Collection
	closers    []func() error
	info       []Hook
	refused    []Refusal
	limits     []string
}

// A tier is a way of seeing something: programs that go together.
type tier struct {
	purpose   string
	programs  []string
	variables map[string]any // to set before they are loaded
	limit     string         // what cannot be seen this way
	without   string         // what cannot be seen without it; "" if there is no tracker without it
}

// stateTier sees every change of a state: the second program covers the first (see
// bpf/maps.h), and must be attached after it.
var stateTier = tier{
	purpose:   "tcp states",
	programs:  []string{bpf.TrackerProgInetSockSetState, bpf.TrackerProgInetSockSetStateCover},
	variables: map[string]any{bpf.TrackerVarShutdownNumber: uint32(unix.SYS_SHUTDOWN)},
}

// taskTier sees processes come, change and go.
var taskTier = tier{
	purpose: "processes",
	programs: []string{
		bpf.TrackerProgSchedProcessFork, bpf.TrackerProgSchedProcessExec, bpf.TrackerProgSchedProcessExit,
	},
	without: "that a process has forked, run another program or exited shows only once descriptors are looked at again (Connections)",
}

const (
	connectLimit = "an attempt to connect that fails before anything is sent makes no event"
	uringLimit   = "a connection that is accepted through io_uring shows without its process until descriptors are looked at again (Connections)"
)

// A plan is a set of tiers to try, those first that a tracker cannot do without.
type plan []tier

// plans returns what the kernel may allow, best first, and why a better one is not
// among them.
func plans() ([]plan, []Refusal) {
	exit := plan{stateTier, {
		purpose:  "accept",
		programs: []string{bpf.TrackerProgSysExitAccept4, bpf.TrackerProgSysExitAccept},
	}, taskTier, {
		purpose:  "connect",
		programs: []string{bpf.TrackerProgSysExitConnect},
		variables: map[string]any{
			bpf.TrackerVarConnectBy:     uint32(bpf.TrackerConnectTierCONNECT_CALL),
			bpf.TrackerVarConnectNumber: uint32(unix.SYS_CONNECT),
		},
		without: connectLimit,
	}, {
		purpose:  "accept by io_uring",
		programs: uringPrograms(),
		without:  uringLimit,
	}}
	bare := exit[:2:2] // for a kernel that refuses one of the others
	program, err := typedAcceptProgram()
	if err != nil {
		return []plan{exit, bare}, []Refusal{refusal("fexit/inet_csk_accept", cause(err))}
	}
	typed := plan{stateTier, {
		purpose:  "accept",
		programs: []string{program},
		limit:    "the descriptor of an accepted connection is known only once descriptors are looked at again (Connections)",
	}, taskTier, {
		purpose:   "connect",
		programs:  []string{bpf.TrackerProgInetStreamConnect},
		variables: map[string]any{bpf.TrackerVarConnectBy: uint32(bpf.TrackerConnectTierCONNECT_TYPED)},
		without:   connectLimit,
	}}
	return []plan{typed, exit, bare}, nil
}

// uringPrograms returns the program that fits the kernel's tracepoint, none if it
// has no io_uring.
func uringPrograms() []string {
	const context = 1 // the first parameter of a tracepoint's probe
	switch n, _ := parameters("btf_trace_io_uring_complete"); n - context {
	case 3: // from 6.12 on
		return []string{bpf.TrackerProgIoUringComplete}
	case 6, 7:
		return []string{bpf.TrackerProgIoUringCompleteResult}
	}
	return nil
}

// typedAcceptProgram returns which program fits the kernel's inet_csk_accept, or
// why the kernel allows none there: it is cheaper to ask with a program that does
// nothing than to have all of them refused.
func typedAcceptProgram() (string, error) {
	const function = "inet_csk_accept"
	nothing, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFExit, AttachTo: function,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		return "", err
	}
	nothing.Close()
	n, err := parameters(function)
	switch {
	case err != nil:
		return "", err
	case n == 2:
		return bpf.TrackerProgInetCskAccept2, nil // since 6.10
	case n == 4:
		return bpf.TrackerProgInetCskAccept4, nil
	}
	return "", fmt.Errorf("%s has %d parameters: %w", function, n, errors.ErrUnsupported)
}

// parameters returns how many parameters a kernel function has, or the function
// that a type points to, by BTF: a wrong prototype may load and give wrong values
// (kernel 6.1, inet_csk_accept).
func parameters(name string) (int, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return 0, err
	}
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

// attachHooks loads and attaches the programs, by the best plan that the kernel
// allows.
func attachHooks(cfg Config) (*hooks, error) {
	// Before 5.11 maps are charged to this limit.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift RLIMIT_MEMLOCK: %w", err)
	}
	plans, refused := plans()
	for _, p := range plans {
		h, err := p.attach(cfg)
		if err == nil {
			h.refused = append(refused, h.refused...)
			return h, nil
		}
		refused = append(refused, refusal(attachPoints[p[1].programs[0]], cause(err)))
	}
	return nil, refused[len(refused)-1].Err
}

// attach loads and attaches the programs of a plan. Of those that a tracker can do
// without, what cannot be attached is left out, and said.
func (p plan) attach(cfg Config) (*hooks, error) {
	spec, err := bpf.LoadTracker()
	if err != nil {
		return nil, err
	}
	words := 1 << bits.Len(uint(cfg.MaxConnections-1))
	spec.Maps[bpf.TrackerMapEvents].MaxEntries = uint32(cfg.RingBuffer)
	spec.Maps[bpf.TrackerMapOwners].MaxEntries = uint32(cfg.MaxConnections)
	spec.Maps[bpf.TrackerMapStates].MaxEntries = uint32(words)
	variables := map[string]any{bpf.TrackerVarStatesMask: uint32(words - 1), bpf.TrackerVarTellStates: cfg.States}
	var wanted []string
	for _, t := range p {
		wanted = append(wanted, t.programs...)
		maps.Copy(variables, t.variables)
	}
	for name, value := range variables {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, err
		}
	}
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return !slices.Contains(wanted, name) })

	h := new(hooks)
	if h.collection, err = ebpf.NewCollection(spec); err != nil {
		return nil, err
	}
	// States last: a socket that is seen has all else of it seen too.
	for _, t := range slices.Backward(p) {
		err := h.attachTier(t)
		switch {
		case err == nil && t.limit != "":
			h.limits = append(h.limits, t.limit)
		case err != nil && t.without == "":
			return nil, errors.Join(err, h.close())
		case err != nil:
			h.refused = append(h.refused, refusal(attachPoints[t.programs[0]], cause(err)))
			h.limits = append(h.limits, t.without)
		}
	}
	if len(p) == 2 {
		h.limits = append(h.limits, taskTier.without, connectLimit, uringLimit)
	}
	return h, nil
}

func (h *hooks) attachTier(t tier) error {
	for _, name := range t.programs {
		if err := h.attach(t.purpose, name); err != nil {
			return err
		}
	}
	return nil
}

// attachPoints has the attach point of each program, in libbpf's notation.
var attachPoints = map[string]string{
	bpf.TrackerProgInetSockSetState:      "tp_btf/inet_sock_set_state",
	bpf.TrackerProgInetSockSetStateCover: "tp_btf/inet_sock_set_state",
	bpf.TrackerProgInetCskAccept2:        "fexit/inet_csk_accept",
	bpf.TrackerProgInetCskAccept4:        "fexit/inet_csk_accept",
	bpf.TrackerProgSysExitAccept4:        "tracepoint/syscalls/sys_exit_accept4",
	bpf.TrackerProgSysExitAccept:         "tracepoint/syscalls/sys_exit_accept",
	bpf.TrackerProgIoUringComplete:       "tp_btf/io_uring_complete",
	bpf.TrackerProgIoUringCompleteResult: "tp_btf/io_uring_complete",
	bpf.TrackerProgInetStreamConnect:     "fexit/__inet_stream_connect",
	bpf.TrackerProgSysExitConnect:        "tracepoint/syscalls/sys_exit_connect",
	bpf.TrackerProgSchedProcessFork:      "tp_btf/sched_process_fork",
	bpf.TrackerProgSchedProcessExec:      "tp_btf/sched_process_exec",
	bpf.TrackerProgSchedProcessExit:      "tp_btf/sched_process_exit",
}

func (h *hooks) attach(purpose, name string) error {
	program := h.collection.Programs[name]
	where := attachPoints[name]
	var closer func() error
	switch program.Type() {
	case ebpf.Tracing:
		l, err := link.AttachTracing(link.TracingOptions{Program: program})
		if err != nil {
			return fmt.Errorf("attach %s: %w", where, err)
		}
		closer = l.Close
	case ebpf.TracePoint:
		tp, err := tracepoint.Attach("syscalls", name, program)
		if err != nil {
			return fmt.Errorf("attach %s: %w", where, err)
		}
		closer = tp.Close
	}
	h.closers = append(h.closers, closer)

	hook := Hook{Purpose: purpose, Attach: where}
	if info, err := program.Info(); err == nil {
		if id, ok := info.ID(); ok {
			hook.Program = uint32(id)
		}
	}
	h.info = append(h.info, hook)
	return nil
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
	if err := h.collection.Variables[bpf.TrackerVarAccounts].Get(&all); err != nil {
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

// missed returns how many state changes the first state program did not see, as
// it was running on that CPU already. Kernels before 5.12 do not count them.
func (h *hooks) missed() (uint64, error) {
	stats, err := h.collection.Programs[bpf.TrackerProgInetSockSetState].Stats()
	if err != nil {
		return 0, fmt.Errorf("read the state hook's misses: %w", err)
	}
	return stats.RecursionMisses, nil
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
	h.collection.Close()
	return err
}
