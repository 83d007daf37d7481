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
static __always_inline bool state_orphan(struct sock *sk, int newstate, const bool direct)
{
	struct arguments a;

	if (LOAD(direct, sk, __sk_common.skc_flags) & (1 << SOCK_DEAD))
		return true;
	return (newstate == TCP_FIN_WAIT1 || newstate == TCP_LAST_ACK) &&
	       LOAD(direct, sk, sk_shutdown) == SHUTDOWN_MASK && arguments_get(&a) && a.number != shutdown_number;
}

static __always_inline u64 *state_word(u64 cookie)
{
	u32 i = cookie & states_mask;

	return bpf_map_lookup_elem(&states, &i);
}

/*
 * Notes the state of a socket where the tracker finds it when it is asked. False
 * if another socket has the place: only sockets that differ in their cookies by a
 * multiple of the map's size can meet there.
 *
 * The word is only ever added to, since kernels before 5.12 cannot exchange it. A
 * free one is claimed by adding to it; who reads back more than that has met
 * another claim, and takes its own away again. Until then the word is a sum, which
 * is nobody's: the mark of a word (maps.h) is 1, that of a sum is more. Its owner
 * may meet a sum too: then this is false, or the word is not cleared, and blocks
 * the place for good. Either costs records, and nothing else.
 */
static __always_inline bool state_note(u64 cookie, int state, bool orphan)
{
	u64 *word = state_word(cookie), key = STATE_MARK | cookie;

	if (!word || cookie >> STATE_COOKIE_BITS)
		return false;

	u64 new = key << 5 | orphan << 4 | state, old = *(volatile u64 *)word;

	if (!old) {
		__sync_fetch_and_add(word, new);
		if (*(volatile u64 *)word == new)
			return true;
		__sync_fetch_and_add(word, -new);
		return false;
	}
	if (old >> 5 != key)
		return false;
	__sync_fetch_and_add(word, new - old);
	return true;
}

static __always_inline void state_forget(u64 cookie)
{
	u64 *word = state_word(cookie);

	if (!word)
		return;

	u64 old = *(volatile u64 *)word;

	if (old >> 5 == (STATE_MARK | cookie))
		__sync_fetch_and_add(word, -old);
}

static __always_inline void owned_fill(struct owned_event *e, enum event_type type, struct tcp_sock *tp, u64 cookie,
				       const struct owner *o, int oldstate, int newstate, u64 now, const bool direct)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	header_fill(&e->socket.header, type, sk, cookie, oldstate, newstate, now, direct);
	/* What a socket listens on may not be in inet_sport yet, or be that of an earlier time (inet_csk_listen_start()). */
	if (type == EVENT_LISTEN)
		socket_fill(&e->socket, sk, bpf_htons(LOAD(direct, sk, __sk_common.skc_num)), direct);
	else
		socket_fill(&e->socket, sk, LOAD(direct, tp, inet_conn.icsk_inet.inet_sport), direct);
	e->inode = sock_inode(sk, direct);
	e->error = LOAD(direct, sk, sk_err);
	if (o) {
		e->owner = o->process;
		e->fd = o->fd;
	} else {
		__builtin_memset(&e->owner, 0, sizeof(e->owner));
		e->fd = -1;
	}
}

static __always_inline void owned_event(enum event_type type, struct tcp_sock *tp, u64 cookie, const struct owner *o,
					int oldstate, int newstate, u64 now, const bool direct)
{
	struct owned_event *e = event_reserve(sizeof(*e));

	if (!e)
		return;
	owned_fill(e, type, tp, cookie, o, oldstate, newstate, now, direct);
	bpf_ringbuf_submit(e, 0);
}

/* A change of the state that no other event tells. */
static __always_inline void state_event(struct tcp_sock *tp, u64 cookie, int oldstate, int newstate, const bool direct)
{
	struct owner *o = owner_of(&tp->inet_conn.icsk_inet.sk);

	owned_event(EVENT_STATE, tp, cookie, owner_is(o, cookie) ? o : 0, oldstate, newstate, bpf_ktime_get_ns(), direct);
}

static __always_inline void state_listen(struct tcp_sock *tp, u64 cookie, int oldstate, const bool direct)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u64 now = bpf_ktime_get_ns();
	struct owner o;

	owner_open(&o, sk, cookie, ROLE_LISTEN, now);
	owned_event(EVENT_LISTEN, tp, cookie, &o, oldstate, TCP_LISTEN, now, direct);
}

/*
 * SYN_RECV -> ESTABLISHED is a child of a listener, unless two connects have met (RFC 9293, 3.5). It runs in
 * softirq, for whoever accepts the child; somebody may have done so already, as the child is queued before it
 * is established (tcp_check_req(), tcp_fastopen_create_child()).
 */
static __always_inline void state_established(struct tcp_sock *tp, u64 cookie, int oldstate, const bool direct)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u64 now = bpf_ktime_get_ns();
	struct owner *o = owner_of(sk);

	if (!owner_is(o, cookie))
		o = 0;
	if (oldstate == TCP_SYN_SENT || (o && o->process.role == ROLE_CONNECT)) {
		if (o) {
			o->cookie = cookie; /* by now it has one */
			o->since = now;
		}
		owned_event(EVENT_CONNECT, tp, cookie, o, oldstate, TCP_ESTABLISHED, now, direct);
		return;
	}
	if (o) {
		bool told = o->cookie;

		o->cookie = cookie;
		o->since = now;
		if (!told) {
			owned_event(EVENT_ACCEPT, tp, cookie, o, oldstate, TCP_ESTABLISHED, now, direct);
			return;
		}
	}

	struct socket_event *e = event_reserve(sizeof(*e));

	if (!e)
		return;
	header_fill(&e->header, EVENT_CHILD, sk, cookie, oldstate, TCP_ESTABLISHED, now, direct);
	socket_fill(e, sk, LOAD(direct, tp, inet_conn.icsk_inet.inet_sport), direct);
	bpf_ringbuf_submit(e, 0);
}

/* An attempt to connect has come to nothing. */
static __always_inline void state_fail(struct tcp_sock *tp, u64 cookie, const bool direct)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	struct owner *o = owner_of(sk);
	int error = LOAD(direct, sk, sk_err);

	if (!error) {
		/* Closed by its process, which may have been killed (tcp_close_state()) ... */
		if (LOAD(direct, sk, sk_shutdown) == SHUTDOWN_MASK)
			error = ECANCELED;
		/* ... or connect() is about to return an error (tcp_v4_connect()), and that will be told. */
		else if (connect_tells()) {
			if (tell_states)
				state_event(tp, cookie, TCP_SYN_SENT, TCP_CLOSE, direct);
			goto out;
		}
	}

	struct owned_event *e = event_reserve(sizeof(*e));

	if (e) {
		owned_fill(e, EVENT_FAIL, tp, cookie, owner_is(o, cookie) ? o : 0, TCP_SYN_SENT, TCP_CLOSE, bpf_ktime_get_ns(),
			   direct);
		e->error = error;
		bpf_ringbuf_submit(e, 0);
	}
out:
	owner_forget(sk);
}

static __always_inline void state_close(struct tcp_sock *tp, u64 cookie, int oldstate, const bool direct)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u64 now = bpf_ktime_get_ns();
	struct owner *o = owner_of(sk);

	if (o && owner_is(o, cookie)) {
		if (!o->cookie && o->process.role == ROLE_ACCEPT) /* and never established */
			owned_event(EVENT_ACCEPT, tp, cookie, o, oldstate, TCP_CLOSE, now, direct);
	} else {
		o = 0;
	}

	struct close_event *e = event_reserve(sizeof(*e));

	if (e) {
		owned_fill(&e->owned, EVENT_CLOSE, tp, cookie, o, oldstate, TCP_CLOSE, now, direct);
		e->established = o && o->cookie ? o->since : 0;
		/* Payload, each byte once. bytes_received counts the peer's FIN as a byte (tcp_rcv_nxt_update()). */
		e->bytes_sent = LOAD(direct, tp, bytes_sent) - LOAD(direct, tp, bytes_retrans);
		e->bytes_received = LOAD(direct, tp, bytes_received);
		if (e->bytes_received && (LOAD(direct, sk, __sk_common.skc_flags) & (1 << SOCK_DONE)))
			e->bytes_received--;
		e->retransmits = LOAD(direct, tp, total_retrans);
		e->srtt_us = LOAD(direct, tp, srtt_us) >> 3; /* kept in eighths */
		bpf_ringbuf_submit(e, 0);
	}
	owner_forget(sk);
	state_forget(cookie);
}

/*
 * Whether a socket with this cookie has it from its listener: older kernels copy that, tell of the child, and only then
 * take it away (inet_csk_clone_lock()).
 */
static __always_inline bool state_copied(u64 cookie, int oldstate, int newstate)
{
	return cookie && oldstate == TCP_LISTEN && newstate == TCP_SYN_RECV;
}

static __always_inline void state_change(struct tcp_sock *tp, u64 cookie, bool copied, int oldstate, int newstate,
					 const bool direct)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	switch (newstate) {
	case TCP_SYN_SENT: {
		struct owner o;

		owner_open(&o, sk, cookie, ROLE_CONNECT, bpf_ktime_get_ns());
		if (tell_states)
			state_event(tp, cookie, oldstate, newstate, direct);
		break;
	}
	case TCP_LISTEN:
		state_listen(tp, cookie, oldstate, direct);
		break;
	case TCP_ESTABLISHED:
		state_established(tp, cookie, oldstate, direct);
		break;
	case TCP_CLOSE:
		if (oldstate == TCP_SYN_SENT)
			state_fail(tp, cookie, direct);
		else
			state_close(tp, cookie, oldstate, direct);
		break;
	case TCP_SYN_RECV: /* a listener's child is made, or two connects have met */
		if (tell_states)
			state_event(tp, copied ? 0 : cookie, oldstate, newstate, direct);
		break;
	default:
		if (!state_note(cookie, newstate, state_orphan(sk, newstate, direct)) || tell_states)
			state_event(tp, cookie, oldstate, newstate, direct);
	}
}

/* Which of the programs at a hook this is (marks, in maps.h). */
enum pass {
	PASS_ONLY,
	PASS_FIRST,
	PASS_COVER,
};

static __always_inline void state_pass(struct tcp_sock *tp, u64 cookie, bool copied, int oldstate, int newstate,
				       enum pass pass, const bool direct)
{
	u64 mark = mark_value(cookie, oldstate, newstate);

	if (pass == PASS_COVER) {
		if (*mark_of(cookie) == mark) {
			if (one_cover)
				*mark_of(cookie) = 0;
			return;
		}
		count(&account()->covered);
	}
	state_change(tp, cookie, copied, oldstate, newstate, direct);
	if (pass == PASS_FIRST || (pass == PASS_COVER && !one_cover))
		*mark_of(cookie) = mark;
}

/*
 * None of these is told of DCCP, SCTP and MPTCP. An MPTCP connection is seen as the
 * TCP subflows that carry it.
 */
static __always_inline void state_typed(struct sock *sk, int oldstate, int newstate, const enum pass pass)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp)
		return;

	bool copied = state_copied(sock_cookie(sk, true), oldstate, newstate); /* before it gets its own */

	state_pass(tp, sock_cookie_typed(sk), copied, oldstate, newstate, pass, true);
}

static __always_inline void state_untyped_by(struct tcp_sock *tp, int oldstate, int newstate, enum pass pass,
					     const bool direct)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	if (LOAD(direct, sk, sk_protocol) != IPPROTO_TCP)
		return;

	u64 cookie = sock_cookie(sk, direct);

	state_pass(tp, cookie, state_copied(cookie, oldstate, newstate), oldstate, newstate, pass, direct);
}

/* For hooks that give nothing but the address of a socket. A function of its own, as several programs have it. */
static __noinline int state_untyped(const void *sk, int oldstate, int newstate, enum pass pass)
{
	if (CAN_CAST)
		state_untyped_by(CAST(sk, struct tcp_sock), oldstate, newstate, pass, true);
	else
		state_untyped_by((struct tcp_sock *)sk, oldstate, newstate, pass, false);
	return 0;
}
