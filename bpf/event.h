/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What goes through the ring buffer. Every record begins with a struct header;
 * its type says which struct it is. All members are in host byte order except
 * the addresses. The Go side decodes these by offset (package tracker, wire.go);
 * TestWireLayout holds the two equal by this object's BTF.
 */
#pragma once

#include "kernel.h"

enum event_type {
	EVENT_LISTEN = 1, /* struct owned_event */
	EVENT_CONNECT,	  /* struct owned_event: SYN_SENT -> ESTABLISHED */
	EVENT_CHILD,	  /* struct socket_event: a listener's child is ESTABLISHED; nobody owns it yet */
	EVENT_ACCEPT,	  /* struct owned_event: a process got that child */
	EVENT_MAYBE_ACCEPT, /* struct owned_event: so, if it is such a child */
	EVENT_FAIL,	  /* struct owned_event: SYN_SENT -> CLOSE, with the error of the socket */
	EVENT_FAIL_CALL,  /* struct owned_event: connect(2) has failed, with its error */
	EVENT_STATE,	  /* struct owned_event: any other transition, if it is asked for or cannot be noted */
	EVENT_CLOSE,	  /* struct close_event */
	EVENT_FORK,	  /* struct task_event */
	EVENT_EXEC,	  /* struct task_event */
	EVENT_EXIT,	  /* struct task_event: the last thread; its descriptors are about to be closed */
};

enum role {
	ROLE_NONE,
	ROLE_LISTEN,
	ROLE_CONNECT,
	ROLE_ACCEPT,
};

struct header {
	u64 time;   /* CLOCK_MONOTONIC, ns */
	u64 cookie; /* 0: the socket has none yet */
	u8 type;
	u8 oldstate;
	u8 newstate;
	u8 family;
	u32 netns;
};

/* A process, as it was when it did what made it an owner. */
struct process {
	u64 start;  /* of its leader: task_struct.start_boottime, ns */
	u64 cgroup; /* bpf_get_current_cgroup_id() */
	u32 pid;    /* thread group; 0: no owner is known */
	u32 uid;
	u32 exec; /* task_struct.self_exec_id: another program has another number */
	u32 role; /* enum role: what it did */
	u64 comm[2]; /* of its leader */
};

struct socket_event {
	struct header header;
	u8 laddr[16];
	u8 raddr[16];
	u16 lport;
	u16 rport;
	u32 uid; /* sock.sk_uid */
};

struct owned_event {
	struct socket_event socket;
	u64 inode; /* 0: no process has a descriptor yet, or any more */
	s32 fd;	   /* -1: unknown */
	s32 error; /* errno: sock.sk_err, or what connect(2) has returned */
	struct process owner;
};

struct close_event {
	struct owned_event owned;
	u64 established; /* CLOCK_MONOTONIC, ns; 0: not seen */
	u64 bytes_sent;
	u64 bytes_received;
	u32 retransmits;
	u32 srtt_us;
};

struct task_event {
	struct header header;
	u32 pid;    /* thread group */
	u32 parent; /* of EVENT_FORK: its thread group */
};
