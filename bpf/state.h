/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What a change of a TCP socket's state means. */
#pragma once

#include "owner.h"
#include "socket.h"

static __always_inline void owner_fill(struct socket_event *e, struct owner *o)
{
	if (o) {
		e->owner = o->process;
		e->fd = o->fd;
	} else {
		__builtin_memset(&e->owner, 0, sizeof(e->owner));
		e->fd = -1;
	}
}

static __always_inline void state_close(struct sock *sk, u64 cookie, struct tcp_sock *tp, int oldstate, u64 now)
{
	struct close_event *e = event_reserve(sizeof(*e));
	struct owner *o = bpf_sk_storage_get(&owners, sk, 0, 0);
	u64 key = (u64)sk;
	bool child = false;

	if (!o && !typed_accept) {
		o = bpf_map_lookup_elem(&children, &key);
		child = o;
	}
	if (e) {
		header_fill(&e->socket.header, EVENT_CLOSE, sk, cookie, oldstate, TCP_CLOSE, now, true);
		socket_fill(&e->socket, sk, tp->inet_conn.icsk_inet.inet_sport, true);
		e->socket.inode = sock_inode(sk);
		owner_fill(&e->socket, o);
		e->established = o ? o->established : 0;
		/* Payload, each byte once. bytes_received counts the peer's FIN as a byte (tcp_rcv_nxt_update()). */
		e->bytes_sent = tp->bytes_sent - tp->bytes_retrans;
		e->bytes_received = tp->bytes_received;
		if (e->bytes_received && (sk->__sk_common.skc_flags & (1 << SOCK_DONE)))
			e->bytes_received--;
		e->retransmits = tp->total_retrans;
		e->srtt_us = tp->srtt_us >> 3; /* kept in eighths */
		bpf_ringbuf_submit(e, 0);
	}
	if (child)
		bpf_map_delete_elem(&children, &key);
}

static __always_inline void state_socket(struct sock *sk, u64 cookie, struct tcp_sock *tp, enum event_type type,
					 struct owner *o, int oldstate, int newstate, u64 now)
{
	struct socket_event *e = event_reserve(sizeof(*e));

	if (!e)
		return;
	header_fill(&e->header, type, sk, cookie, oldstate, newstate, now, true);
	socket_fill(e, sk, tp->inet_conn.icsk_inet.inet_sport, true);
	e->inode = sock_inode(sk);
	owner_fill(e, o);
	bpf_ringbuf_submit(e, 0);
}

static __always_inline void state_other(struct sock *sk, u64 cookie, int oldstate, int newstate, u64 now)
{
	struct header *h = event_reserve(sizeof(*h));

	if (!h)
		return;
	header_fill(h, EVENT_STATE, sk, cookie, oldstate, newstate, now, true);
	bpf_ringbuf_submit(h, 0);
}

static __always_inline void state_change(struct sock *sk, u64 cookie, int oldstate, int newstate)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	/* Not for DCCP, SCTP and MPTCP. An MPTCP connection is seen as the TCP subflows that carry it. */
	if (!tp)
		return;

	u64 now = bpf_ktime_get_ns();
	struct owner *o;

	switch (newstate) {
	case TCP_SYN_SENT:
		owner_open(sk, ROLE_CONNECT);
		break;
	case TCP_LISTEN:
		owner_open(sk, ROLE_LISTEN);
		o = bpf_sk_storage_get(&owners, sk, 0, 0);
		state_socket(sk, cookie, tp, EVENT_LISTEN, o, oldstate, newstate, now);
		break;
	case TCP_ESTABLISHED:
		o = bpf_sk_storage_get(&owners, sk, 0, 0);
		/* SYN_RECV -> ESTABLISHED is a child, unless two connects have met (RFC 9293, 3.5). */
		if (oldstate == TCP_SYN_SENT || (o && o->process.role == ROLE_CONNECT)) {
			if (o)
				o->established = now;
			state_socket(sk, cookie, tp, EVENT_CONNECT, o, oldstate, newstate, now);
		} else {
			owner_child(sk, cookie, now);
			state_socket(sk, cookie, tp, EVENT_CHILD, 0, oldstate, newstate, now);
		}
		break;
	case TCP_CLOSE:
		if (oldstate == TCP_SYN_SENT) {
			o = bpf_sk_storage_get(&owners, sk, 0, 0);
			state_socket(sk, cookie, tp, EVENT_FAIL, o, oldstate, newstate, now);
		} else {
			state_close(sk, cookie, tp, oldstate, now);
		}
		break;
	case TCP_SYN_RECV:
		break;
	default:
		state_other(sk, cookie, oldstate, newstate, now);
	}
}
