//go:build ignore

// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Entry points of the live tracker. Which of them are attached is the loader's choice (package tracker,
 * hooks_linux.go).
 */
#include "accept.h"
#include "connect.h"
#include "cookie.h"
#include "state.h"
#include "task.h"

/* Keep in BTF what the Go types are made from. */
const enum event_type *event_type_btf __attribute__((unused));
const enum role *role_btf __attribute__((unused));
const enum connect_tier *connect_tier_btf __attribute__((unused));
const struct header *header_btf __attribute__((unused));
const struct socket_event *socket_event_btf __attribute__((unused));
const struct owned_event *owned_event_btf __attribute__((unused));
const struct close_event *close_event_btf __attribute__((unused));
const struct task_event *task_event_btf __attribute__((unused));

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/*
 * net/ipv4/tcp.c, tcp_set_state(): every transition, in whatever task or softirq makes it. The kernel runs the
 * programs of a tracepoint in the order in which they were attached.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state, struct sock *sk, int oldstate, int newstate)
{
	state_typed(sk, oldstate, newstate, PASS_FIRST);
	return 0;
}

/* Covers the one above (see maps.h); loaded as often as that takes. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state_cover, struct sock *sk, int oldstate, int newstate)
{
	state_typed(sk, oldstate, newstate, PASS_COVER);
	return 0;
}

/* The same two where the tracepoint is attached to by name. */
SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state_raw, void *sk, int oldstate, int newstate)
{
	return state_untyped(sk, oldstate, newstate, PASS_FIRST);
}

SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state_raw_cover, void *sk, int oldstate, int newstate)
{
	return state_untyped(sk, oldstate, newstate, PASS_COVER);
}

/* The same as an event of perf: one program, as what would skip it skips a second one too. */
SEC("tracepoint/sock/inet_sock_set_state")
int inet_sock_set_state_event(struct trace_event_raw_inet_sock_set_state *ctx)
{
	return state_untyped(ctx->skaddr, ctx->oldstate, ctx->newstate, PASS_ONLY);
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *ctx)
{
	return cookie_create(ctx);
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	return cookie_ops(ctx);
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

/* The same where the function's return is a breakpoint. */
SEC("kretprobe/inet_csk_accept")
int inet_csk_accept_return(void *regs)
{
	accept_untyped(returned(regs));
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept") /* and accept4 */
int sys_exit_accept(struct trace_event_raw_sys_exit *ctx)
{
	accept_fd(ctx->ret);
	return 0;
}

/* io_uring/io_uring.c: a request is done, in the task that has made it or in a worker thread of that. */
SEC("tp_btf/io_uring_complete")
int BPF_PROG(io_uring_complete, struct io_ring_ctx *ring, void *request, struct io_uring_cqe *cqe)
{
	accept_completed(request, cqe->res);
	return 0;
}

/* Before 6.12 the result was a parameter. */
SEC("tp_btf/io_uring_complete")
int BPF_PROG(io_uring_complete_result, struct io_ring_ctx *ring, void *request, u64 user_data, int result)
{
	accept_completed(request, result);
	return 0;
}

/* net/ipv4/af_inet.c */
SEC("fexit/__inet_stream_connect")
int BPF_PROG(inet_stream_connect, struct socket *socket, void *addr, int addr_len, int flags, int is_sendmsg, int ret)
{
	connect_typed(socket, addr, ret);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_connect")
int sys_exit_connect(struct trace_event_raw_sys_exit *ctx)
{
	connect_exit(ctx->ret);
	return 0;
}

/* kernel/fork.c, fs/exec.c, kernel/exit.c */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	if (child->pid == child->tgid) /* else a thread */
		task_event(EVENT_FORK, child->tgid, parent->tgid);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task)
{
	task_event(EVENT_EXEC, task->tgid, 0);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	if (!task->signal->live.counter)
		task_event(EVENT_EXIT, task->tgid, 0);
	return 0;
}
