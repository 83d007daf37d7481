/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Who a socket belongs to: told by the task that opens or accepts it. */
#pragma once

#include "fd.h"
#include "maps.h"

/*
 * Set by the loader: whether accepts are seen by inet_csk_accept(). Decides where
 * children's owners live (see maps.h).
 */
const volatile bool typed_accept = false;

static __always_inline void process_current(struct process *p, enum role role)
{
	struct task_struct *leader = ((struct task_struct *)bpf_get_current_task_btf())->group_leader;

	p->start = leader->start_boottime;
	p->cgroup = bpf_get_current_cgroup_id();
	p->pid = bpf_get_current_pid_tgid() >> 32;
	p->uid = bpf_get_current_uid_gid();
	p->exec = leader->self_exec_id;
	p->role = role;
#pragma unroll
	for (int i = 0; i < sizeof(p->comm); i++)
		p->comm[i] = leader->comm[i];
}

/* The current task has made sk a listener or begun to connect it. */
static __always_inline void owner_open(struct sock *sk, enum role role)
{
	struct owner *o = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!o) {
		count(&account()->map_full);
		return;
	}
	process_current(&o->process, role);
	o->established = 0;
	o->fd = fd_of_argument(sk);
}

/* sk, a listener's child, is established. Runs in softirq, for whoever accepts it. */
static __always_inline void owner_child(struct sock *sk, u64 now)
{
	if (typed_accept) {
		struct owner *o = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

		if (!o) {
			count(&account()->map_full);
			return;
		}
		o->established = now;
		o->process.role = ROLE_CHILD;
		o->fd = -1;
	} else {
		struct owner child = {.established = now, .fd = -1, .process.role = ROLE_CHILD};
		u64 key = (u64)sk;

		if (bpf_map_update_elem(&children, &key, &child, BPF_ANY))
			count(&account()->map_full);
	}
}

/*
 * The current task has accepted the child that o describes. False if it has an
 * owner already: the descriptor that led to it is another accept's by now.
 */
static __always_inline bool owner_accept(struct owner *o, int fd)
{
	if (o->process.role == ROLE_ACCEPT)
		return false;
	process_current(&o->process, ROLE_ACCEPT);
	o->fd = fd;
	return true;
}

/* Like owner_accept() for a child known by its address alone. */
static __always_inline bool owner_accept_untyped(struct sock *sk, int fd)
{
	u64 key = (u64)sk;
	struct owner *o = bpf_map_lookup_elem(&children, &key);

	if (o)
		return owner_accept(o, fd);

	/* Older than the programs; or closed before it was accepted, then nobody would delete it. */
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		return true;
	struct owner child = {.fd = fd};
	process_current(&child.process, ROLE_ACCEPT);
	if (bpf_map_update_elem(&children, &key, &child, BPF_ANY))
		count(&account()->map_full);
	else if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		bpf_map_delete_elem(&children, &key);
	return true;
}
