/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Processes that come, change and go, and their descriptors with them. */
#pragma once

#include "maps.h"

static __always_inline void task_event(enum event_type type, u32 pid, u32 parent)
{
	struct task_event *e = event_reserve(sizeof(*e));

	if (!e)
		return;
	__builtin_memset(&e->header, 0, sizeof(e->header));
	e->header.time = bpf_ktime_get_ns();
	e->header.type = type;
	e->pid = pid;
	e->parent = parent;
	bpf_ringbuf_submit(e, 0);
}
