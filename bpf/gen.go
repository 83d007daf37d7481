// Package bpf holds the kernel side of conntrace: CO-RE programs in C, the objects
// compiled from them, and Go bindings for both, which scripts/gen.sh generates.
// Building and using this package needs Go alone.
//
// tracker.bpf.c has the entry points; the headers hold the logic by area. event.h
// is the format of what comes out of the ring buffer, and maps.h says who writes
// and reads each map.
package bpf

//go:generate ../scripts/gen.sh
