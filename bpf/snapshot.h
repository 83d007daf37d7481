/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What the iterators of iter.bpf.c write. The Go side reads these where they lie
 * (package tracker, iter_linux.go). All members are in host byte order except the
 * addresses.
 */
#pragma once

#include "kernel.h"

/* A TCP or UDP socket. */
struct inet_row {
	u64 inode; /* 0: no process has had a descriptor yet, or none any more */
	u64 cookie;
	u8 laddr[16];
	u8 raddr[16];
	u16 lport;
	u16 rport;
	u32 uid; /* sock_i_uid() */
	u8 family;
	u8 state;
	u8 unused[6];
};

/* A descriptor of a socket, whatever its family. */
struct holder_row {
	u64 inode;
	u32 pid;
	s32 fd;
};
