//go:build ignore

// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The snapshot iterators (Documentation/bpf/bpf_iterators.rst): each is run once for every socket, or descriptor, and
 * writes a record of fixed size to whoever reads the iterator. The sockets are those of the network namespace in which
 * the reader was when it opened the iterator; the descriptors are those of every process in its PID namespace.
 */
#include "snapshot.h"

/* Keep in BTF what the Go types are made from. */
const struct inet_row *inet_row_btf __attribute__((unused));
const struct holder_row *holder_row_btf __attribute__((unused));

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static __always_inline u64 socket_inode(struct socket *socket)
{
	/* SOCK_INODE(): the socket is allocated together with its inode. */
	return socket ? BPF_CORE_READ((struct socket_alloc *)socket, vfs_inode.i_ino) : 0;
}

static __always_inline void inet_fill(struct inet_row *row, struct sock_common *skc, u32 uid)
{
	u32 *laddr = (u32 *)row->laddr, *raddr = (u32 *)row->raddr;

	row->cookie = bpf_get_socket_cookie(skc);
	row->family = skc->skc_family;
	row->state = skc->skc_state;
	row->uid = uid;
	row->lport = skc->skc_num;
	row->rport = bpf_ntohs(skc->skc_dport);
	if (row->family == AF_INET) {
		laddr[0] = skc->skc_rcv_saddr;
		raddr[0] = skc->skc_daddr;
	} else {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			laddr[i] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			raddr[i] = skc->skc_v6_daddr.in6_u.u6_addr32[i];
		}
	}
}

/* Full sockets, those in TIME_WAIT, and requests that are no sockets yet (NEW_SYN_RECV). */
SEC("iter/tcp")
int tcp_sockets(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct inet_row row = {};

	if (!skc)
		return 0;
	inet_fill(&row, skc, ctx->uid);

	struct tcp_sock *tp = bpf_skc_to_tcp_sock(skc);

	if (tp) {
		row.inode = socket_inode(tp->inet_conn.icsk_inet.sk.sk_socket);
	} else if (row.state == TCP_TIME_WAIT) {
		struct tcp_timewait_sock *tw = bpf_skc_to_tcp_timewait_sock(skc);

		/* FIN_WAIT2 too ends here, and is shown as that. */
		if (tw)
			row.state = tw->tw_sk.tw_substate;
	}
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

SEC("iter/udp")
int udp_sockets(struct bpf_iter__udp *ctx)
{
	struct udp_sock *up = ctx->udp_sk;
	struct inet_row row = {};

	if (!up || up->inet.sk.sk_protocol != IPPROTO_UDP) /* UDP-Lite */
		return 0;
	inet_fill(&row, &up->inet.sk.__sk_common, ctx->uid);
	row.inode = socket_inode(up->inet.sk.sk_socket);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* The descriptors of thread-group leaders, which are what /proc/PID/fd shows. */
SEC("iter/task_file")
int holders(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;

	if (!task || !file || task->pid != task->tgid || !bpf_sock_from_file(file))
		return 0;

	struct holder_row row = {
		.inode = file->f_inode->i_ino,
		.pid = task->tgid,
		.fd = ctx->fd,
	};

	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
