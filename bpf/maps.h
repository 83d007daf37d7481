/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "event.h"

/* Who a socket belongs to. */
struct owner {
	struct process process;
	u64 established; /* CLOCK_MONOTONIC, ns; 0: not seen */
	u64 cookie;	 /* of the socket, where it is found by its address; 0: it had none yet */
	s32 fd;		 /* by which the process got it; -1: unknown */
	u32 unused;
};

/*
 * Owners of sockets, in the sockets themselves.
 *   insert: the task that listens or connects; softirq for a child, if accepts
 *           are seen by inet_csk_accept(), whose return value is a trusted sock
 *   read:   state changes, accepts
 *   delete: the kernel, with the socket
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct owner);
} owners SEC(".maps");

/*
 * Owners of children by sock pointer, where accepts are seen by the exit of the
 * system call: the sock that is found there by its descriptor is a plain pointer,
 * which socket storage does not take.
 *   insert: softirq, when a child is established; the accepting task, if it comes
 *           first, and for a child older than the programs
 *   read:   the accepting task
 *   delete: -> CLOSE of the child
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, u64);
	__type(value, struct owner);
} children SEC(".maps");

/* Events on their way to user space.
 *   insert: every program
 *   read:   the tracker, which maps it
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
} events SEC(".maps");

/*
 * The account, a line of cache for each CPU, mapped by the tracker. Adds are
 * atomic because a program may be preempted, and because CPUs beyond the last
 * line share one.
 */
enum { ACCOUNTS = 128 };

struct account {
	u64 seen;      /* events that a hook set out to deliver */
	u64 ring_full; /* of these: found no room in the ring buffer */
	u64 map_full;  /* owners that found no room in a map */
	u64 covered;   /* changes that the second state program saw in place of the first */
	u64 unused[4];
};

struct account accounts[ACCOUNTS] __attribute__((aligned(64)));

static __always_inline struct account *account(void)
{
	return &accounts[bpf_get_smp_processor_id() & (ACCOUNTS - 1)];
}

static __always_inline void count(u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

/*
 * The kernel skips a program that is running on the same CPU already: a state that
 * changes in a softirq would be missed if the softirq came while the program ran
 * in a task. So there are two of them. The first leaves a mark of what it has done;
 * the second, which the kernel runs right after it, does the work if it finds none.
 * Both are skipped only where three runs nest, which takes preemption as well.
 *
 *   insert: the first program
 *   delete: the second one, for the same change
 */
enum { MARKS = 64 };

struct marks {
	u64 change[MARKS]; /* by cookie, so that nested runs keep apart */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct marks);
} marks SEC(".maps");

/* Where the mark of a socket's change is on this CPU. */
static __always_inline u64 *mark_of(u64 cookie)
{
	u32 zero = 0;
	struct marks *m = bpf_map_lookup_elem(&marks, &zero);

	return m ? &m->change[cookie % MARKS] : 0;
}

static __always_inline u64 mark_value(u64 cookie, int newstate)
{
	return cookie << 4 | newstate;
}

/* Reserves room for an event; NULL, counted, if there is none. */
static __always_inline void *event_reserve(u64 size)
{
	struct account *a = account();
	void *e = bpf_ringbuf_reserve(&events, size, 0);

	count(&a->seen);
	if (!e)
		count(&a->ring_full);
	return e;
}
