/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Cookies for those who can only read them. The kernel gives a socket its cookie when somebody asks for it first; these
 * programs ask, before its states are told.
 */
#pragma once

#include "kernel.h"

/* A process makes a socket: net/ipv4/af_inet.c, inet_create(). */
static __always_inline int cookie_create(struct bpf_sock *ctx)
{
	bpf_get_socket_cookie(ctx);
	return 1; /* allowed */
}

/*
 * The network makes one, and establishes it (tcp_init_transfer()), or the kernel connects or listens. Whatever else
 * this is called for keeps the answer that it has without it: reply stays 0.
 */
static __always_inline int cookie_ops(struct bpf_sock_ops *ctx)
{
	bpf_get_socket_cookie(ctx);
	return 1;
}
