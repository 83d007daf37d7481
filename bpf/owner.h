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

/* The owner in sk, made if there is none; NULL, counted, if there is no memory. */
static __always_inline struct owner *owner_make(struct sock *sk)
{
	struct owner *o = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	/* Of two CPUs that make it at once, one fails (bpf_local_storage_alloc()) and finds it there. */
	if (!o)
		o = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!o)
		count(&account()->map_full);
	return o;
}

/* The current task has made sk a listener or begun to connect it. */
static __always_inline void owner_open(struct sock *sk, enum role role)
{
	struct owner *o = owner_make(sk);

	if (!o)
		return;
	process_current(&o->process, role);
	o->established = 0;
	o->fd = fd_of_argument(sk);
}

/*
 * Forgets what o, found by the address of a socket, says of an earlier one there,
 * whose end was missed.
 */
static __always_inline void owner_verify(struct owner *o, u64 cookie)
{
	if (o->cookie && o->cookie != cookie) {
		o->process.role = ROLE_NONE;
		o->established = 0;
	}
	o->cookie = cookie;
}

/*
 * sk, a listener's child, is established. Runs in softirq, for whoever accepts it;
 * somebody may have done so already, as the child is queued before it is established
 * (tcp_check_req()).
 */
static __always_inline void owner_child(struct sock *sk, u64 cookie, u64 now)
{
	struct owner *o;

	if (typed_accept) {
		o = owner_make(sk);
	} else {
		struct owner child = {.fd = -1, .process.role = ROLE_CHILD};
		u64 key = (u64)sk;

		bpf_map_update_elem(&children, &key, &child, BPF_NOEXIST);
		o = bpf_map_lookup_elem(&children, &key);
		if (o)
			owner_verify(o, cookie);
		else
			count(&account()->map_full);
	}
	if (!o)
		return;
	o->established = now;
	if (o->process.role == ROLE_NONE) {
		o->process.role = ROLE_CHILD;
		o->fd = -1;
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
static __always_inline bool owner_accept_untyped(struct sock *sk, u64 cookie, int fd)
{
	u64 key = (u64)sk;
	struct owner *o = bpf_map_lookup_elem(&children, &key);

	if (o) {
		owner_verify(o, cookie);
		return owner_accept(o, fd);
	}

	/* Not established yet; or older than the programs; or closed by now, then nobody would delete it. */
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		return true;
	struct owner child = {.fd = fd, .cookie = cookie};
	process_current(&child.process, ROLE_ACCEPT);
	if (bpf_map_update_elem(&children, &key, &child, BPF_NOEXIST)) {
		o = bpf_map_lookup_elem(&children, &key); /* established meanwhile */
		if (o)
			return owner_accept(o, fd);
		count(&account()->map_full);
	} else if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE) {
		bpf_map_delete_elem(&children, &key);
	}
	return true;
}
