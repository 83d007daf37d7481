/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* A process gets a connection: accept(2). */
#pragma once

#include "owner.h"
#include "socket.h"

/*
 * Makes mine the owner in the place of o, which is to be a child that nobody has accepted. False if it is none.
 * The child may be closed meanwhile, and o belong to another socket then: it is replaced by its key, never written to.
 */
static __always_inline bool accept_child(struct sock *sk, const struct owner *o, struct owner *mine)
{
	u64 key = (u64)sk;
	u32 role = o->process.role;

	mine->since = o->since;
	barrier();
	if (!owner_is(o, mine->cookie))
		return true;
	if (role != ROLE_CHILD)
		return false;

	long err = bpf_map_update_elem(&owners, &key, mine, BPF_EXIST);

	if (err && err != -ENOENT)
		count(&account()->map_full);
	return true;
}

/*
 * The current task has accepted sk. Whoever accepts first is its owner: where
 * descriptors are looked up, the one that an accept has returned may lead to another
 * accept's socket by now.
 */
static __always_inline void accept_sock(struct sock *sk, u64 cookie, __be16 sport, u64 inode, int fd, const bool direct)
{
	int state = LOAD(direct, sk, __sk_common.skc_state);
	struct owner *o = owner_of(sk), mine;

	if (o && !cookie)
		cookie = sock_cookie(sk, direct); /* it may have got one since */
	mine.since = 0;
	mine.cookie = cookie;
	mine.fd = fd;
	mine.unused = 0;
	process_current(&mine.process, ROLE_ACCEPT);
	if (!owner_is(o, cookie)) {
		o = 0;
		if (state != TCP_CLOSE) {
			/* Not established yet, or older than the programs. */
			o = owner_claim(sk, &mine, cookie, direct);
			/* Closed by now, it would never be deleted. */
			if (!o && LOAD(direct, sk, __sk_common.skc_state) == TCP_CLOSE) {
				state = TCP_CLOSE;
				if (!owner_forget(sk) && !cookie)
					return; /* state_close() has told it */
			}
		}
	}
	if (o && !accept_child(sk, o, &mine))
		return;
	/* Without a cookie nobody knows which one it is: it is told when it is established, or closed. */
	if (!cookie) {
		if (state != TCP_CLOSE)
			return;
		cookie = sock_cookie(sk, direct);
	}

	struct owned_event *e = event_reserve(sizeof(*e));

	if (!e)
		return;
	header_fill(&e->socket.header, EVENT_ACCEPT, sk, cookie, state, state, bpf_ktime_get_ns(), direct);
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
		accept_sock(newsk, sock_cookie_typed(newsk), tp->inet_conn.icsk_inet.inet_sport, 0, -1, true);
}

static __always_inline void accept_untyped_by(struct sock *newsk, const bool direct)
{
	if (LOAD(direct, newsk, sk_protocol) == IPPROTO_TCP)
		accept_sock(newsk, sock_cookie(newsk, direct), sock_sport(newsk, direct), 0, -1, direct);
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
		accept_sock(sk, sock_cookie(sk, direct), sock_sport(sk, direct), ino, fd, direct);
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
 * operation is not known, a result that happens to be the descriptor of a child
 * that nobody is known to have accepted shows its owner all the same.
 */
static __always_inline void accept_completed_by(struct io_kiocb *request, int result, const bool direct)
{
	if (request && LOAD(direct, request, opcode) != IORING_OP_ACCEPT)
		return;

	u64 ino;
	struct sock *sk = socket_tcp(fd_socket(result, &ino, direct), direct);
	struct owner *o = sk ? owner_of(sk) : 0;

	if (o && o->process.role == ROLE_CHILD)
		accept_sock(sk, o->cookie, sock_sport(sk, direct), ino, result, direct);
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
