/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* From a descriptor of the current task to its socket. */
#pragma once

#include "kernel.h"

/* The current task's file fd if it is a socket, and its inode; NULL if it is none. */
static __always_inline struct socket *fd_socket(int fd, u64 *ino, const bool direct)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct files_struct *files = LOAD(direct, task, files);
	struct fdtable *fdt = LOAD(direct, files, fdt);
	struct file **slots = LOAD(direct, fdt, fd), *file = 0;

	if (fd < 0 || fd >= LOAD(direct, fdt, max_fds))
		return 0;
	if (bpf_probe_read_kernel(&file, sizeof(file), &slots[fd]) || !file)
		return 0;
	if (direct)
		file = CAST(file, struct file);

	struct inode *inode = LOAD(direct, file, f_inode);

	if ((LOAD(direct, inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	*ino = LOAD(direct, inode, i_ino);

	struct socket *socket = LOAD(direct, file, private_data);

	return direct ? CAST(socket, struct socket) : socket;
}

/* The TCP socket of a socket, NULL if it is another one: the first subflow stands for an MPTCP socket. */
static __always_inline struct sock *socket_tcp(struct socket *socket, const bool direct)
{
	struct sock *sk = socket ? LOAD(direct, socket, sk) : 0;

	if (!sk)
		return 0;
	if (LOAD(direct, sk, sk_protocol) == IPPROTO_MPTCP) {
		if (direct) {
			sk = CAST(sk, struct mptcp_sock)->first;
			if (!sk)
				return 0;
		} else {
			sk = BPF_CORE_READ((struct mptcp_sock *)sk, first);
		}
	}

	u16 family = LOAD(direct, sk, __sk_common.skc_family);

	if (family != AF_INET && family != AF_INET6)
		return 0;
	return LOAD(direct, sk, sk_protocol) == IPPROTO_TCP ? sk : 0;
}

/* What the current system call was called with (include/asm-generic/syscall.h). */
struct arguments {
	u64 number, first, second;
};

static __always_inline bool arguments_get(struct arguments *a)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	void *regs = (void *)bpf_task_pt_regs(task);

	if (bpf_core_field_exists(struct pt_regs___x86, orig_ax)) {
		a->number = ((struct pt_regs___x86 *)regs)->orig_ax;
		a->first = ((struct pt_regs___x86 *)regs)->di;
		a->second = ((struct pt_regs___x86 *)regs)->si;
	} else if (bpf_core_field_exists(struct pt_regs___arm64, orig_x0)) {
		a->number = ((struct pt_regs___arm64 *)regs)->syscallno;
		a->first = ((struct pt_regs___arm64 *)regs)->orig_x0;
		a->second = ((struct pt_regs___arm64 *)regs)->regs[1];
	} else {
		return false;
	}
	return true;
}

/*
 * The descriptor of sk that the current task has passed as the first argument of
 * its system call, as listen(2), connect(2) and sendto(2) do; -1 if the call has
 * none, or it is not sk's.
 */
static __always_inline int fd_of_argument(struct sock *sk)
{
	struct arguments a;
	struct sock *found;
	u64 ino;

	if (!arguments_get(&a))
		return -1;
	if (CAN_CAST)
		found = socket_tcp(fd_socket(a.first, &ino, true), true);
	else
		found = socket_tcp(fd_socket(a.first, &ino, false), false);
	return found == sk ? (int)a.first : -1;
}
