package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/conntrace/conntrace/pkg/tracker"
)

// empty attaches programs that do nothing at the attach points of a tracker, one at
// each: what the kernel takes to call anything there.
func empty(ctx context.Context) error {
	ctx, cancel := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer cancel()
	t, err := tracker.Open(ctx, tracker.Config{Source: tracker.SourceEBPF})
	if err != nil {
		return err
	}
	points := make(map[string]bool)
	for _, h := range t.Info().Hooks {
		points[h.Attach] = true
	}
	if err := t.Close(); err != nil {
		return err
	}
	for point := range points {
		p, l, err := attachEmpty(point)
		if err != nil {
			return fmt.Errorf("%s: %w", point, err)
		}
		defer p.Close()
		defer l.Close()
	}
	<-ctx.Done()
	return nil
}

// attachEmpty attaches an empty program at an attach point in libbpf's notation.
func attachEmpty(point string) (p *ebpf.Program, l link.Link, err error) {
	kind, place, _ := strings.Cut(point, "/")
	spec := &ebpf.ProgramSpec{
		Name: "empty", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, License: "GPL",
	}
	var attach func(p *ebpf.Program) (link.Link, error)
	switch kind {
	case "tp_btf", "fexit":
		spec.Type, spec.AttachTo = ebpf.Tracing, place
		spec.AttachType = ebpf.AttachTraceRawTp
		if kind == "fexit" {
			spec.AttachType = ebpf.AttachTraceFExit
		}
		attach = func(p *ebpf.Program) (link.Link, error) { return link.AttachTracing(link.TracingOptions{Program: p}) }
	case "tracepoint":
		group, name, _ := strings.Cut(place, "/")
		spec.Type = ebpf.TracePoint
		attach = func(p *ebpf.Program) (link.Link, error) { return link.Tracepoint(group, name, p, nil) }
	default: // where the best hooks of a kernel are others
		return nil, nil, errors.ErrUnsupported
	}
	if p, err = ebpf.NewProgram(spec); err != nil {
		return nil, nil, err
	}
	if l, err = attach(p); err != nil {
		p.Close()
		return nil, nil, err
	}
	return p, l, nil
}
