/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* A process gets a connection: accept(2). */
#pragma once

#include "owner.h"
#include "socket.h"

static __always_inline void accept_submit(struct socket_event *e, struct sock *sk, u64 cookie, __be16 sport,
					  u64 inode, int fd, bool trusted)
{
	int state = LOAD(trusted, sk, __sk_common.skc_state);

	header_fill(&e->header, EVENT_ACCEPT, sk, cookie, state, state, bpf_ktime_get_ns(), trusted);
	socket_fill(e, sk, sport, trusted);
	e->inode = inode;
	e->fd = fd;
	process_current(&e->owner, ROLE_ACCEPT);
	bpf_ringbuf_submit(e, 0);
}

/* newsk is what inet_csk_accept() returned: it has neither inode nor descriptor yet. */
static __always_inline void accept_typed(struct sock *newsk)
{
	struct tcp_sock *tp = newsk ? bpf_skc_to_tcp_sock(newsk) : 0;

	if (!tp)
		return;

	struct owner *o = owner_make(newsk);

	if (o && !owner_accept(o, -1))
		return;

	struct socket_event *e = event_reserve(sizeof(*e));

	if (e)
		accept_submit(e, newsk, bpf_get_socket_cookie(newsk), tp->inet_conn.icsk_inet.inet_sport, 0, -1, true);
}

/*
 * The current task's descriptor fd, as accept(2) has just returned it. Another
 * thread may have closed it since and opened another file there: what is not a
 * TCP socket with a listener's child is not ours.
 */
static __always_inline void accept_fd(int fd)
{
	struct inode *inode;
	struct socket *socket = fd_socket(fd, &inode);

	if (!socket)
		return;

	struct sock *sk = sock_tcp(BPF_CORE_READ(socket, sk));

	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return;

	u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	if (family != AF_INET && family != AF_INET6)
		return;

	u64 cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);

	if (!owner_accept_untyped(sk, cookie, fd))
		return;

	struct socket_event *e = event_reserve(sizeof(*e));

	if (e)
		accept_submit(e, sk, cookie, BPF_CORE_READ((struct inet_sock *)sk, inet_sport), BPF_CORE_READ(inode, i_ino), fd, false);
}
