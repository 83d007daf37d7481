/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* From a descriptor of the current task to its socket. */
#pragma once

#include "kernel.h"

static __always_inline struct task_struct *task_current(const bool direct)
{
	return direct ? (struct task_struct *)bpf_get_current_task_btf() : (struct task_struct *)bpf_get_current_task();
}

/* The current task's file fd if it is a socket, and its inode; NULL if it is none. */
static __always_inline struct socket *fd_socket(int fd, u64 *ino, const bool direct)
{
	struct task_struct *task = task_current(direct);
	struct files_struct *files = LOAD(direct, task, files);
	struct fdtable *fdt = LOAD(direct, files, fdt);
	struct file **slots = LOAD(direct, fdt, fd), *file = 0;

	if (fd < 0 || fd >= LOAD(direct, fdt, max_fds))
		return 0;
	if (direct) /* a list's head is a type that is nothing but a pointer, as a slot is */
		file = CAST(CAST(&slots[fd], struct hlist_head)->first, struct file);
	else
		bpf_probe_read_kernel(&file, sizeof(file), &slots[fd]);
	if (!file)
		return 0;

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
	if (bpf_core_type_exists(struct mptcp_sock) && LOAD(direct, sk, sk_protocol) == IPPROTO_MPTCP) {
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

static __always_inline bool arguments_from(struct arguments *a, void *regs, const bool direct)
{
	if (bpf_core_field_exists(struct pt_regs___x86, orig_ax)) {
		struct pt_regs___x86 *r = regs;

		a->number = LOAD(direct, r, orig_ax);
		a->first = LOAD(direct, r, di);
		a->second = LOAD(direct, r, si);
	} else if (bpf_core_field_exists(struct pt_regs___arm64, orig_x0)) {
		struct pt_regs___arm64 *r = regs;

		a->number = LOAD(direct, r, syscallno);
		a->first = LOAD(direct, r, orig_x0);
		a->second = LOAD(direct, r, regs[1]);
	} else {
		return false;
	}
	return true;
}

/* What a function has returned: regs is what a kretprobe gets. */
static __always_inline void *returned(void *regs)
{
	if (bpf_core_field_exists(struct pt_regs___x86, ax))
		return (void *)BPF_CORE_READ((struct pt_regs___x86 *)regs, ax);
	if (bpf_core_field_exists(struct pt_regs___arm64, orig_x0))
		return (void *)BPF_CORE_READ((struct pt_regs___arm64 *)regs, regs[0]);
	return 0;
}

/*
 * Set by the loader: the size of a kernel stack (THREAD_SIZE), at whose top the registers are; 0: unknown. Only
 * kernels without bpf_task_pt_regs() need it.
 */
const volatile u32 stack_size = 0;

static __always_inline bool arguments_get(struct arguments *a)
{
	if (HAS_HELPER(task_pt_regs))
		return arguments_from(a, (void *)bpf_task_pt_regs((struct task_struct *)bpf_get_current_task_btf()), true);
	if (!stack_size)
		return false;

	void *regs = BPF_CORE_READ(task_current(false), stack) + stack_size - bpf_core_type_size(struct pt_regs___x86);

	/* A kernel with KASAN has larger stacks: what is here is not the state of a user's task then. */
	if (bpf_core_field_exists(struct pt_regs___x86, cs) && !(BPF_CORE_READ((struct pt_regs___x86 *)regs, cs) & 3))
		return false;
	return arguments_from(a, regs, false);
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
