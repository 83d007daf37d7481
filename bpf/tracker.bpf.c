//go:build ignore

// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Entry points of the live tracker. Which of them are attached is the loader's choice (package tracker,
 * hooks_linux.go).
 */
#include "accept.h"
#include "state.h"

/* Keep in BTF what the Go types are made from. */
const enum event_type *event_type_btf __attribute__((unused));
const enum role *role_btf __attribute__((unused));
const struct header *header_btf __attribute__((unused));
const struct socket_event *socket_event_btf __attribute__((unused));
const struct close_event *close_event_btf __attribute__((unused));

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/*
 * net/ipv4/tcp.c, tcp_set_state(): every transition, in whatever task or softirq makes it. The kernel runs the
 * programs of a tracepoint in the order in which they were attached.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state, struct sock *sk, int oldstate, int newstate)
{
	u64 cookie = bpf_get_socket_cookie(sk);
	u64 *mark = mark_of(cookie);

	state_change(sk, cookie, oldstate, newstate);
	if (mark)
		*(volatile u64 *)mark = mark_value(cookie, newstate);
	return 0;
}

/* Covers the one above (see maps.h). */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state_cover, struct sock *sk, int oldstate, int newstate)
{
	u64 cookie = bpf_get_socket_cookie(sk);
	u64 *mark = mark_of(cookie);

	if (mark && *(volatile u64 *)mark == mark_value(cookie, newstate)) {
		*(volatile u64 *)mark = 0;
		return 0;
	}
	count(&account()->covered);
	state_change(sk, cookie, oldstate, newstate);
	return 0;
}

/* net/ipv4/inet_connection_sock.c: struct sock *inet_csk_accept(sk, flags, err, kern) before 6.10 ... */
SEC("fexit/inet_csk_accept")
int BPF_PROG(inet_csk_accept4, struct sock *sk, int flags, int *err, bool kern, struct sock *newsk)
{
	accept_typed(newsk);
	return 0;
}

/* ... and (sk, arg) since. */
SEC("fexit/inet_csk_accept")
int BPF_PROG(inet_csk_accept2, struct sock *sk, struct proto_accept_arg *arg, struct sock *newsk)
{
	accept_typed(newsk);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int sys_exit_accept4(struct trace_event_raw_sys_exit *ctx)
{
	accept_fd(ctx->ret);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept")
int sys_exit_accept(struct trace_event_raw_sys_exit *ctx)
{
	accept_fd(ctx->ret);
	return 0;
}
