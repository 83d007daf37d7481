/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* A process gets a connection: accept(2). */
#pragma once

#include "owner.h"
#include "socket.h"

/*
 * The current task has accepted sk. Whoever accepts first is its owner: where
 * descriptors are looked up, the one that an accept has returned may lead to another
 * accept's socket by now.
 */
static __always_inline void accept_sock(enum event_type type, struct sock *sk, u64 cookie, __be16 sport, u64 inode,
					int fd, const bool direct)
{
	int state = LOAD(direct, sk, __sk_common.skc_state);
	struct owner mine;

	process_current(&mine.process, ROLE_ACCEPT);
	mine.since = 0; /* the tracker knows */
	mine.cookie = cookie;
	mine.fd = fd;
	mine.unused = 0;
	if (state != TCP_CLOSE) {
		if (!owner_claim(sk, &mine, cookie, direct))
			return;
		/* Closed by now, it would never be deleted. */
		state = LOAD(direct, sk, __sk_common.skc_state);
		if (state == TCP_CLOSE && !owner_forget(sk) && !cookie)
			return; /* state_close() has told it */
	}
	if (!cookie) {
		/* Nobody knows which one it is until it is established, or closed. It may be by now. */
		cookie = sock_cookie(sk, direct);
		if (state != TCP_CLOSE) {
			struct owner *o = cookie ? owner_of(sk) : 0;

			if (!o || o->cookie)
				return;
			o->cookie = cookie;
		}
	}

	struct owned_event *e = event_reserve(sizeof(*e));

	if (!e)
		return;
	header_fill(&e->socket.header, type, sk, cookie, state, state, bpf_ktime_get_ns(), direct);
	socket_fill(&e->socket, sk, sport, direct);
	e->inode = inode;
	e->fd = fd;
	e->error = 0;
	e->owner = mine.process;
	bpf_ringbuf_submit(e, 0);
}

/* newsk is what inet_csk_accept() returned: it has neither inode nor descriptor yet. */
static __always_inline void accept_typed(struct sock *newsk)
{
	struct tcp_sock *tp = newsk ? bpf_skc_to_tcp_sock(newsk) : 0;

	if (tp)
		accept_sock(EVENT_ACCEPT, newsk, sock_cookie_typed(newsk), tp->inet_conn.icsk_inet.inet_sport, 0, -1, true);
}

static __always_inline void accept_untyped_by(struct sock *newsk, const bool direct)
{
	if (LOAD(direct, newsk, sk_protocol) == IPPROTO_TCP)
		accept_sock(EVENT_ACCEPT, newsk, sock_cookie(newsk, direct), sock_sport(newsk, direct), 0, -1, direct);
}

/* The same where nothing but its address is known. */
static __always_inline void accept_untyped(void *newsk)
{
	if (!newsk)
		return;
	if (CAN_CAST)
		accept_untyped_by(CAST(newsk, struct sock), true);
	else
		accept_untyped_by(newsk, false);
}

static __always_inline void accept_fd_by(int fd, const bool direct)
{
	u64 ino;
	struct sock *sk = socket_tcp(fd_socket(fd, &ino, direct), direct);

	if (sk)
		accept_sock(EVENT_ACCEPT, sk, sock_cookie(sk, direct), sock_sport(sk, direct), ino, fd, direct);
}

/* The current task has fd from accept(2). Another thread may have closed it since and opened another file there. */
static __always_inline void accept_fd(int fd)
{
	if (CAN_CAST)
		accept_fd_by(fd, true);
	else
		accept_fd_by(fd, false);
}

/*
 * A request of io_uring is done, NULL if it is to go on (multishot). Where its
 * operation is not known, the result may happen to be the descriptor of a socket that
 * nobody is known to own: an accept, if the tracker knows it as a listener's child.
 */
static __always_inline void accept_completed_by(struct io_kiocb *request, int result, const bool direct)
{
	if (request && LOAD(direct, request, opcode) != IORING_OP_ACCEPT)
		return;

	u64 ino;
	struct sock *sk = socket_tcp(fd_socket(result, &ino, direct), direct);

	if (!sk)
		return;

	u64 cookie = sock_cookie(sk, direct);

	if (!owner_is(owner_of(sk), cookie))
		accept_sock(request ? EVENT_ACCEPT : EVENT_MAYBE_ACCEPT, sk, cookie, sock_sport(sk, direct), ino, result,
			    direct);
}

static __always_inline void accept_completed(void *request, int result)
{
	if (result < 0)
		return;
	if (!CAN_CAST)
		accept_completed_by(request, result, false);
	else if (request)
		accept_completed_by(CAST(request, struct io_kiocb), result, true);
	else
		accept_completed_by(0, result, true);
}
