package tracker

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"

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

// An acceptTier is a way of seeing accepts.
type acceptTier struct {
	typed    bool // it hands out the accepted socket itself; see maps.h
	programs []string
	limit    string // what it cannot see
}

// acceptTiers returns the ways to see accepts that the kernel may allow, best
// first, and why a better one is not among them.
func acceptTiers() ([]acceptTier, []Refusal) {
	exit := acceptTier{
		programs: []string{bpf.TrackerProgSysExitAccept4, bpf.TrackerProgSysExitAccept},
		limit:    "a connection that is accepted through io_uring shows without its process until descriptors are looked at again (Connections)",
	}
	program, err := typedAcceptProgram()
	if err != nil {
		return []acceptTier{exit}, []Refusal{refusal("fexit/inet_csk_accept", cause(err))}
	}
	typed := acceptTier{
		typed:    true,
		programs: []string{program},
		limit:    "the descriptor of an accepted connection is known only once descriptors are looked at again (Connections)",
	}
	return []acceptTier{typed, exit}, nil
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

// parameters returns how many parameters a kernel function has, by BTF: a wrong
// prototype may load and give wrong values (kernel 6.1, inet_csk_accept).
func parameters(function string) (int, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return 0, err
	}
	var f *btf.Func
	if err := spec.TypeByName(function, &f); err != nil {
		return 0, err
	}
	proto, ok := f.Type.(*btf.FuncProto)
	if !ok {
		return 0, fmt.Errorf("%s has no prototype", function)
	}
	return len(proto.Params), nil
}

// attachHooks loads and attaches the programs, by the best tier that the kernel
// allows.
func attachHooks(cfg Config) (*hooks, error) {
	// Before 5.11 maps are charged to this limit.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift RLIMIT_MEMLOCK: %w", err)
	}
	tiers, refused := acceptTiers()
	for _, tier := range tiers {
		h, err := attachTier(cfg, tier)
		if err == nil {
			h.refused = refused
			return h, nil
		}
		refused = append(refused, refusal(attachPoints[tier.programs[0]], cause(err)))
	}
	return nil, refused[len(refused)-1].Err
}

// attachTier loads and attaches the programs with one way of seeing accepts.
func attachTier(cfg Config, tier acceptTier) (*hooks, error) {
	spec, err := bpf.LoadTracker()
	if err != nil {
		return nil, err
	}
	spec.Maps[bpf.TrackerMapEvents].MaxEntries = uint32(cfg.RingBuffer)
	spec.Maps[bpf.TrackerMapChildren].MaxEntries = uint32(cfg.MaxConnections)
	if tier.typed {
		spec.Maps[bpf.TrackerMapChildren].MaxEntries = 1 // not used
	}
	if err := spec.Variables[bpf.TrackerVarTypedAccept].Set(tier.typed); err != nil {
		return nil, err
	}
	for name := range spec.Programs {
		if !slices.Contains(statePrograms, name) && !slices.Contains(tier.programs, name) {
			delete(spec.Programs, name)
		}
	}

	h := &hooks{limits: []string{tier.limit}}
	h.collection, err = ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	// Accepts first: a child that is seen has its accept seen too.
	for _, name := range tier.programs {
		if err := h.attach("accept", name); err != nil {
			h.close()
			return nil, err
		}
	}
	for i, name := range statePrograms {
		if err := h.attach([]string{"tcp states", "cover of the above"}[i], name); err != nil {
			h.close()
			return nil, err
		}
	}
	return h, nil
}

// statePrograms see every change of a state: the second covers the first (see
// bpf/maps.h), and must be attached after it.
var statePrograms = []string{bpf.TrackerProgInetSockSetState, bpf.TrackerProgInetSockSetStateCover}

// attachPoints has the attach point of each program, in libbpf's notation.
var attachPoints = map[string]string{
	bpf.TrackerProgInetSockSetState:      "tp_btf/inet_sock_set_state",
	bpf.TrackerProgInetSockSetStateCover: "tp_btf/inet_sock_set_state",
	bpf.TrackerProgInetCskAccept2:        "fexit/inet_csk_accept",
	bpf.TrackerProgInetCskAccept4:        "fexit/inet_csk_accept",
	bpf.TrackerProgSysExitAccept4:        "tracepoint/syscalls/sys_exit_accept4",
	bpf.TrackerProgSysExitAccept:         "tracepoint/syscalls/sys_exit_accept",
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
