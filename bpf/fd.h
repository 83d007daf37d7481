/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* From a descriptor of the current task to its socket. */
#pragma once

#include "kernel.h"

/* The current task's file fd if it is a socket, and its inode; NULL if it is none. */
static __always_inline struct socket *fd_socket(int fd, struct inode **inode)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(fdt, fd), *file = 0;

	if (fd < 0 || fd >= BPF_CORE_READ(fdt, max_fds))
		return 0;
	if (bpf_probe_read_kernel(&file, sizeof(file), &slots[fd]) || !file)
		return 0;
	*inode = BPF_CORE_READ(file, f_inode);
	if ((BPF_CORE_READ(*inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	return BPF_CORE_READ(file, private_data);
}

/* The TCP socket of sk: the first subflow stands for an MPTCP socket. */
static __always_inline struct sock *sock_tcp(struct sock *sk)
{
	if (sk && BPF_CORE_READ(sk, sk_protocol) == IPPROTO_MPTCP)
		return BPF_CORE_READ((struct mptcp_sock *)sk, first);
	return sk;
}

/*
 * The descriptor of sk that the current task has passed as the first argument of
 * its system call, as listen(2), connect(2) and sendto(2) do; -1 if the call has
 * none, or it is not sk's.
 */
static __always_inline int fd_of_argument(struct sock *sk)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	void *regs = (void *)bpf_task_pt_regs(task);
	struct inode *inode;
	int fd;

	if (bpf_core_field_exists(struct pt_regs___x86, di))
		fd = ((struct pt_regs___x86 *)regs)->di;
	else if (bpf_core_field_exists(struct pt_regs___arm64, orig_x0))
		fd = ((struct pt_regs___arm64 *)regs)->orig_x0;
	else
		return -1;

	struct socket *socket = fd_socket(fd, &inode);

	return socket && sock_tcp(BPF_CORE_READ(socket, sk)) == sk ? fd : -1;
}
