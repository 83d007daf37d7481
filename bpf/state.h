/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What a change of a TCP socket's state means. */
#pragma once

#include "connect.h"

/* Set by the loader: the number of shutdown(2). */
const volatile u32 shutdown_number = 0;

/*
 * Whether no process holds the socket any more. Where a task ends the sending side,
 * it is about to become an orphan unless the call is shutdown(2): tcp_close() calls
 * sock_orphan() later.
 */
static __always_inline bool state_orphan(struct sock *sk, int newstate)
{
	struct arguments a;

	if (sk->__sk_common.skc_flags & (1 << SOCK_DEAD))
		return true;
	return (newstate == TCP_FIN_WAIT1 || newstate == TCP_LAST_ACK) && sk->sk_shutdown == SHUTDOWN_MASK &&
	       arguments_get(&a) && a.number != shutdown_number;
}

/*
 * Notes the state of a socket where the tracker finds it when it is asked. False
 * if another socket has the place: only sockets that differ in their cookies by a
 * multiple of the map's size can meet there.
 */
static __always_inline bool state_note(u64 cookie, int state, bool orphan)
{
	u32 i = cookie & states_mask;
	u64 *word = bpf_map_lookup_elem(&states, &i);

	if (!word)
		return false;

	u64 old = *(volatile u64 *)word;

	if (old && old >> 5 != cookie)
		return false;
	return __sync_val_compare_and_swap(word, old, cookie << 5 | orphan << 4 | state) == old;
}

static __always_inline void state_forget(u64 cookie)
{
	u32 i = cookie & states_mask;
	u64 *word = bpf_map_lookup_elem(&states, &i);

	if (word && *(volatile u64 *)word >> 5 == cookie)
		*(volatile u64 *)word = 0;
}

static __always_inline void owned_fill(struct owned_event *e, enum event_type type, struct tcp_sock *tp, u64 cookie,
				       const struct owner *o, int oldstate, int newstate, u64 now)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	header_fill(&e->socket.header, type, sk, cookie, oldstate, newstate, now, true);
	socket_fill(&e->socket, sk, tp->inet_conn.icsk_inet.inet_sport, true);
	e->inode = sock_inode(sk);
	e->error = sk->sk_err;
	if (o) {
		e->owner = o->process;
		e->fd = o->fd;
	} else {
		__builtin_memset(&e->owner, 0, sizeof(e->owner));
		e->fd = -1;
	}
}

static __always_inline void owned_event(enum event_type type, struct tcp_sock *tp, u64 cookie, const struct owner *o,
					int oldstate, int newstate, u64 now)
{
	struct owned_event *e = event_reserve(sizeof(*e));

	if (!e)
		return;
	owned_fill(e, type, tp, cookie, o, oldstate, newstate, now);
	bpf_ringbuf_submit(e, 0);
}

/* A change of the state that no other event tells. */
static __always_inline void state_event(struct tcp_sock *tp, u64 cookie, int oldstate, int newstate)
{
	struct owner *o = owner_of(&tp->inet_conn.icsk_inet.sk);

	owned_event(EVENT_STATE, tp, cookie, owner_is(o, cookie) ? o : 0, oldstate, newstate, bpf_ktime_get_ns());
}

static __always_inline void state_listen(struct tcp_sock *tp, u64 cookie, int oldstate)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u64 now = bpf_ktime_get_ns();
	struct owner o;

	owner_open(&o, sk, cookie, ROLE_LISTEN, now);
	owned_event(EVENT_LISTEN, tp, cookie, &o, oldstate, TCP_LISTEN, now);
}

/*
 * SYN_RECV -> ESTABLISHED is a child of a listener, unless two connects have met (RFC 9293, 3.5). It runs in
 * softirq, for whoever accepts the child; somebody may have done so already, as the child is queued before it
 * is established (tcp_check_req(), tcp_fastopen_create_child()).
 */
static __always_inline void state_established(struct tcp_sock *tp, u64 cookie, int oldstate)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u64 now = bpf_ktime_get_ns();
	struct owner *o = owner_of(sk);

	if (!owner_is(o, cookie))
		o = 0;
	if (oldstate == TCP_SYN_SENT || (o && o->process.role == ROLE_CONNECT)) {
		if (o)
			o->since = now;
		owned_event(EVENT_CONNECT, tp, cookie, o, oldstate, TCP_ESTABLISHED, now);
		return;
	}
	if (o) {
		bool told = o->cookie;

		o->cookie = cookie;
		o->since = now;
		if (!told) {
			owned_event(EVENT_ACCEPT, tp, cookie, o, oldstate, TCP_ESTABLISHED, now);
			return;
		}
	} else {
		struct owner child = {.process.role = ROLE_CHILD, .since = now, .cookie = cookie, .fd = -1};

		owner_put(sk, &child);
	}

	struct socket_event *e = event_reserve(sizeof(*e));

	if (!e)
		return;
	header_fill(&e->header, EVENT_CHILD, sk, cookie, oldstate, TCP_ESTABLISHED, now, true);
	socket_fill(e, sk, tp->inet_conn.icsk_inet.inet_sport, true);
	bpf_ringbuf_submit(e, 0);
}

/* An attempt to connect has come to nothing. */
static __always_inline void state_fail(struct tcp_sock *tp, u64 cookie)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	struct owner *o = owner_of(sk);
	int error = sk->sk_err;

	if (!error) {
		/* Closed by its process, which may have been killed (tcp_close_state()) ... */
		if (sk->sk_shutdown == SHUTDOWN_MASK)
			error = ECANCELED;
		/* ... or connect() is about to return an error (tcp_v4_connect()), and that will be told. */
		else if (connect_tells()) {
			if (tell_states)
				state_event(tp, cookie, TCP_SYN_SENT, TCP_CLOSE);
			goto out;
		}
	}

	struct owned_event *e = event_reserve(sizeof(*e));

	if (e) {
		owned_fill(e, EVENT_FAIL, tp, cookie, owner_is(o, cookie) ? o : 0, TCP_SYN_SENT, TCP_CLOSE, bpf_ktime_get_ns());
		e->error = error;
		bpf_ringbuf_submit(e, 0);
	}
out:
	owner_forget(sk);
}

static __always_inline void state_close(struct tcp_sock *tp, u64 cookie, int oldstate)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u64 now = bpf_ktime_get_ns();
	struct owner *o = owner_of(sk);

	if (o && owner_is(o, cookie)) {
		if (!o->cookie) /* accepted, and never established */
			owned_event(EVENT_ACCEPT, tp, cookie, o, oldstate, TCP_CLOSE, now);
	} else {
		o = 0;
	}

	struct close_event *e = event_reserve(sizeof(*e));

	if (e) {
		owned_fill(&e->owned, EVENT_CLOSE, tp, cookie, o, oldstate, TCP_CLOSE, now);
		e->established = o && o->cookie ? o->since : 0;
		/* Payload, each byte once. bytes_received counts the peer's FIN as a byte (tcp_rcv_nxt_update()). */
		e->bytes_sent = tp->bytes_sent - tp->bytes_retrans;
		e->bytes_received = tp->bytes_received;
		if (e->bytes_received && (sk->__sk_common.skc_flags & (1 << SOCK_DONE)))
			e->bytes_received--;
		e->retransmits = tp->total_retrans;
		e->srtt_us = tp->srtt_us >> 3; /* kept in eighths */
		bpf_ringbuf_submit(e, 0);
	}
	owner_forget(sk);
	state_forget(cookie);
}

static __always_inline void state_change(struct sock *sk, u64 cookie, int oldstate, int newstate)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	/* Not for DCCP, SCTP and MPTCP. An MPTCP connection is seen as the TCP subflows that carry it. */
	if (!tp)
		return;
	switch (newstate) {
	case TCP_SYN_SENT: {
		struct owner o;

		owner_open(&o, sk, cookie, ROLE_CONNECT, bpf_ktime_get_ns());
		if (tell_states)
			state_event(tp, cookie, oldstate, newstate);
		break;
	}
	case TCP_LISTEN:
		state_listen(tp, cookie, oldstate);
		break;
	case TCP_ESTABLISHED:
		state_established(tp, cookie, oldstate);
		break;
	case TCP_CLOSE:
		if (oldstate == TCP_SYN_SENT)
			state_fail(tp, cookie);
		else
			state_close(tp, cookie, oldstate);
		break;
	case TCP_SYN_RECV: /* two connects have met */
		if (tell_states)
			state_event(tp, cookie, oldstate, newstate);
		break;
	default:
		if (!state_note(cookie, newstate, state_orphan(sk, newstate)) || tell_states)
			state_event(tp, cookie, oldstate, newstate);
	}
}
