/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "event.h"

/* Who a socket belongs to. */
struct owner {
	struct process process;
	u64 since;  /* CLOCK_MONOTONIC, ns: when it was opened, or established by now; 0: unknown */
	u64 cookie; /* 0: it had none yet, and the accept has not been told */
	s32 fd;	    /* by which the process got it; -1: unknown */
	u32 unused;
};

/*
 * Owners of sockets by the address of the struct sock: a plain pointer, which is
 * all that some hooks have, will do. (Socket storage needs a typed one, takes twice
 * the memory and time, and is not to be had before 5.11.)
 *   insert: the task that listens, connects or accepts
 *   read:   state changes, accepts
 *   delete: -> CLOSE. Where that was missed, the entry is the next socket's at that
 *           address, which is told by its cookie.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, u64);
	__type(value, struct owner);
} owners SEC(".maps");

/* Events on their way to user space.
 *   insert: every program
 *   read:   the tracker, which maps it
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
} events SEC(".maps");

/*
 * States of sockets on their way to an end, FIN_WAIT1 and so on, by cookie modulo
 * the size: most of these last for microseconds, and are not worth an event unless
 * somebody asks (see state_note()). A word is 0 or, from bit 5 on, a cookie and above
 * that STATE_MARK; bit 4 says that the socket is an orphan; the rest is its state.
 *   insert: -> such a state, if the word is free; else that is an event
 *   read:   the tracker, which maps it
 *   delete: -> CLOSE
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 << 18);
	__type(key, u32);
	__type(value, u64);
} states SEC(".maps");

/*
 * What tells a word from a sum of words. Cookies are far from this long, but for those
 * that count backwards (gen_cookie_next()): they have no words.
 */
#define STATE_COOKIE_BITS 48
#define STATE_MARK (1ull << 51)

/* Set by the loader: the size of states, less one; a power of two, less one. */
const volatile u32 states_mask = (1 << 18) - 1;

/* Set by the loader: every change of a state shall be an event, which EVENT_STATE is for those without one. */
const volatile bool tell_states = false;

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
	u64 covered;   /* changes that a cover saw in place of the first state program */
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
 * in a task. So it has covers: programs that the kernel runs right after it. Whichever
 * does the work first leaves a mark of it, and the others find that.
 * A change is missed only where more runs nest than there are programs, which takes
 * preemption: one cover is enough where a tracepoint cannot be preempted. Where it can
 * be, the task may also go on on another CPU between two programs, so marks are shared
 * by all.
 *
 *   insert: whichever program does the work
 *   delete: the cover, if there is but one. Of more none knows whether it is the last;
 *           the next change of the socket, which is from another state, replaces it.
 */
enum { MARKS = 1 << 14 };

/* Set by the loader. */
const volatile bool one_cover = true;

u64 marks[MARKS]; /* by cookie: a place is shared only by sockets that are far apart */

static __always_inline volatile u64 *mark_of(u64 cookie)
{
	return &marks[cookie % MARKS];
}

static __always_inline u64 mark_value(u64 cookie, int oldstate, int newstate)
{
	return cookie << 8 | oldstate << 4 | newstate;
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
