/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Filling events from a struct sock. */
#pragma once

#include "maps.h"

/* Set by the loader: bpf_get_socket_cookie() can be called by tracing programs, from 5.12 on. */
const volatile bool cookie_helper = true;

/*
 * The cookie that a socket has; 0 if nobody has asked for one yet (sock_gen_cookie()). Where a program cannot ask, the
 * ones of cookie.h do so earlier.
 */
static __always_inline u64 sock_cookie(struct sock *sk, const bool direct)
{
	return LOAD(direct, sk, __sk_common.skc_cookie.counter);
}

/* The cookie of a socket whose type the verifier knows. */
static __always_inline u64 sock_cookie_typed(struct sock *sk)
{
	return cookie_helper ? bpf_get_socket_cookie(sk) : (u64)sock_cookie(sk, true);
}

static __always_inline u64 sock_inode(struct sock *sk, const bool direct)
{
	return direct ? sk->sk_socket->file->f_inode->i_ino : BPF_CORE_READ(sk, sk_socket, file, f_inode, i_ino);
}

static __always_inline __be16 sock_sport(struct sock *sk, const bool direct)
{
	return direct ? CAST(sk, struct inet_sock)->inet_sport : BPF_CORE_READ((struct inet_sock *)sk, inet_sport);
}

static __always_inline void header_fill(struct header *h, enum event_type type, struct sock *sk, u64 cookie,
					int oldstate, int newstate, u64 now, const bool direct)
{
	struct net *net = LOAD(direct, sk, __sk_common.skc_net.net);

	h->time = now;
	h->cookie = cookie;
	h->type = type;
	h->oldstate = oldstate;
	h->newstate = newstate;
	h->family = LOAD(direct, sk, __sk_common.skc_family);
	h->netns = LOAD(direct, net, ns.inum);
}

/*
 * Everything of e but the header. sport is inet_sport, in network order; not
 * skc_num, which inet_put_port() sets to 0 on the way to CLOSE.
 */
static __always_inline void socket_fill(struct socket_event *e, struct sock *sk, __be16 sport, const bool direct)
{
	u32 *laddr = (u32 *)e->laddr, *raddr = (u32 *)e->raddr;

	/* A kernel may be built without IPv6. */
	if (LOAD(direct, sk, __sk_common.skc_family) == AF_INET ||
	    !bpf_core_field_exists(struct sock_common, skc_v6_daddr)) {
		laddr[0] = LOAD(direct, sk, __sk_common.skc_rcv_saddr);
		raddr[0] = LOAD(direct, sk, __sk_common.skc_daddr);
#pragma unroll
		for (int i = 1; i < 4; i++)
			laddr[i] = raddr[i] = 0;
	} else {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			laddr[i] = LOAD(direct, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[i]);
			raddr[i] = LOAD(direct, sk, __sk_common.skc_v6_daddr.in6_u.u6_addr32[i]);
		}
	}
	e->lport = bpf_ntohs(sport);
	e->rport = bpf_ntohs(LOAD(direct, sk, __sk_common.skc_dport));
	e->uid = LOAD(direct, sk, sk_uid.val);
}
