/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* connect(2) that fails, also before anything is sent: no state changes then that would tell. */
#pragma once

#include "owner.h"
#include "socket.h"

/* Set by the loader: how the result of connect(2) is seen. */
enum connect_tier {
	CONNECT_UNSEEN,
	CONNECT_CALL, /* at the exit of the system call: not where io_uring connects */
	CONNECT_TYPED, /* at the return of __inet_stream_connect() */
};

const volatile u32 connect_by = CONNECT_UNSEEN;
const volatile u32 connect_number = 0; /* of the system call */

/* Whether the current task is in a connect() whose error will be told by connect_failed(). */
static __always_inline bool connect_tells(void)
{
	struct arguments a;

	return connect_by == CONNECT_TYPED ||
	       (connect_by == CONNECT_CALL && arguments_get(&a) && a.number == connect_number);
}

/* These are no failures: the attempt goes on, or was another one. */
static __always_inline bool connect_goes_on(s64 error)
{
	return error == EINPROGRESS || error == EALREADY || error == EISCONN || error == EINTR || error >= ERESTARTSYS;
}

struct sockaddr_any {
	u16 family;
	__be16 port;
	u32 address; /* IPv4; IPv6: flow information */
	u32 address6[4];
};

static __always_inline void connect_failed(struct sock *sk, const struct sockaddr_any *to, u64 inode, int fd, int error,
					   const bool direct)
{
	struct owned_event *e = event_reserve(sizeof(*e));

	if (!e)
		return;
	header_fill(&e->socket.header, EVENT_FAIL_CALL, sk, sock_cookie(sk, direct), TCP_CLOSE, TCP_CLOSE,
		    bpf_ktime_get_ns(), direct);
	socket_fill(&e->socket, sk, sock_sport(sk, direct), direct);

	u32 *raddr = (u32 *)e->socket.raddr;

	/* An IPv6 socket may be told to connect to an IPv4 address; the kernel refuses anything else. */
	if (to->family == AF_INET6) {
#pragma unroll
		for (int i = 0; i < 4; i++)
			raddr[i] = to->address6[i];
	} else if (e->socket.header.family == AF_INET) {
		raddr[0] = to->address;
		raddr[1] = raddr[2] = raddr[3] = 0;
	}
	e->socket.rport = bpf_ntohs(to->port);
	e->inode = inode;
	e->fd = fd;
	e->error = error;
	process_current(&e->owner, ROLE_CONNECT);
	bpf_ringbuf_submit(e, 0);
}

static __always_inline void connect_exit_by(int error, const struct arguments *a, const bool direct)
{
	struct sockaddr_any to = {};
	u64 inode;
	struct sock *sk = socket_tcp(fd_socket(a->first, &inode, direct), direct);

	if (!sk)
		return;
	/* What cannot be read has no address. */
	bpf_probe_read_user(&to, __builtin_offsetof(struct sockaddr_any, address6), (void *)a->second);
	if (to.family == AF_INET6)
		bpf_probe_read_user(&to, sizeof(to), (void *)a->second);
	connect_failed(sk, &to, inode, a->first, error, direct);
}

/* connect(2) has returned ret. */
static __always_inline void connect_exit(s64 ret)
{
	struct arguments a;

	if (ret >= 0 || connect_goes_on(-ret) || !arguments_get(&a))
		return;
	if (CAN_CAST)
		connect_exit_by(-ret, &a, true);
	else
		connect_exit_by(-ret, &a, false);
}

/* __inet_stream_connect() has returned ret. */
static __always_inline void connect_typed(struct socket *socket, const void *addr, s64 ret)
{
	struct sockaddr_any to = {};
	struct sock *sk = socket->sk;

	if (ret >= 0 || connect_goes_on(-ret) || !sk || sk->sk_protocol != IPPROTO_TCP)
		return;

	u64 inode = socket->file->f_inode->i_ino;
	int fd = fd_of_argument(sk);

	if (CAN_CAST) {
		struct sockaddr_in6 *any = CAST(addr, struct sockaddr_in6);

		to.family = any->sin6_family;
		to.port = any->sin6_port;
		to.address = any->sin6_flowinfo; /* where struct sockaddr_in has its address */
#pragma unroll
		for (int i = 0; i < 4; i++)
			to.address6[i] = any->sin6_addr.in6_u.u6_addr32[i];
		connect_failed(sk, &to, inode, fd, -ret, true);
	} else {
		bpf_probe_read_kernel(&to, sizeof(to), addr);
		connect_failed(sk, &to, inode, fd, -ret, false);
	}
}
