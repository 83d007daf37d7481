/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Who a socket belongs to: told by the task that opens or accepts it. */
#pragma once

#include "fd.h"
#include "maps.h"
#include "socket.h"

static __always_inline void process_leader(struct process *p, const bool direct)
{
	struct task_struct *task = task_current(direct), *leader = LOAD(direct, task, group_leader);

	p->start = LOAD(direct, leader, start_boottime);
	p->exec = LOAD(direct, leader, self_exec_id);
	if (direct) {
		const u64 *comm = (const u64 *)leader->comm;

		p->comm[0] = comm[0];
		p->comm[1] = comm[1];
	} else {
		BPF_CORE_READ_INTO(&p->comm, leader, comm);
	}
}

static __always_inline void process_current(struct process *p, enum role role)
{
	if (HAS_HELPER(get_current_task_btf))
		process_leader(p, true);
	else
		process_leader(p, false);
	p->cgroup = bpf_get_current_cgroup_id();
	p->pid = bpf_get_current_pid_tgid() >> 32;
	p->uid = bpf_get_current_uid_gid();
	p->role = role;
}

static __always_inline struct owner *owner_of(struct sock *sk)
{
	u64 key = (u64)sk;

	return bpf_map_lookup_elem(&owners, &key);
}

/* Whether o, found by the address of the socket with this cookie, is its owner: not that of an earlier one there. */
static __always_inline bool owner_is(const struct owner *o, u64 cookie)
{
	return o && (!o->cookie || o->cookie == cookie);
}

/* False if there was none. */
static __always_inline bool owner_forget(struct sock *sk)
{
	u64 key = (u64)sk;

	return !bpf_map_delete_elem(&owners, &key);
}

/* Puts o in the place of whatever was there. A failure, for want of memory or room, is counted. */
static __always_inline bool owner_put(struct sock *sk, const struct owner *o)
{
	u64 key = (u64)sk;

	if (!bpf_map_update_elem(&owners, &key, o, BPF_ANY))
		return true;
	count(&account()->map_full);
	return false;
}

/* Puts o there, if there is room; false if the socket has an owner already. */
static __always_inline bool owner_claim(struct sock *sk, const struct owner *o, u64 cookie, const bool direct)
{
	u64 key = (u64)sk;

	if (!bpf_map_update_elem(&owners, &key, o, BPF_NOEXIST))
		return true;
	if (owner_is(owner_of(sk), cookie ?: sock_cookie(sk, direct)))
		return false;
	owner_put(sk, o); /* in the place of another socket's */
	return true;
}

/* The current task has made sk a listener or begun to connect it. o is filled whether or not there is room for it. */
static __always_inline void owner_open(struct owner *o, struct sock *sk, u64 cookie, enum role role, u64 now)
{
	process_current(&o->process, role);
	o->since = now;
	o->cookie = cookie;
	o->fd = fd_of_argument(sk);
	o->unused = 0;
	owner_put(sk, o);
}
