/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The kernel types that the programs read, cut down to the members they use.
 * CO-RE (preserve_access_index) finds each member's place in the running kernel
 * by its BTF, so order and size here mean nothing; names and types do.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;
typedef signed long long s64;
typedef _Bool bool;
enum { false, true };

/* The names that bpf_helper_defs.h uses. */
typedef u8 __u8;
typedef u16 __u16;
typedef u32 __u32;
typedef u64 __u64;
typedef s32 __s32;
typedef s64 __s64;
typedef u16 __be16;
typedef u32 __be32;
typedef u32 __wsum;
typedef u64 __be64;

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY, BPF_NOEXIST };
enum { BPF_F_NO_PREALLOC = 1 << 0, BPF_F_MMAPABLE = 1 << 10 };

/* include/linux/socket.h, include/uapi/linux/in.h, include/uapi/linux/stat.h */
enum { AF_INET = 2, AF_INET6 = 10 };
enum { IPPROTO_TCP = 6, IPPROTO_UDP = 17, IPPROTO_MPTCP = 262 };
enum { S_IFMT = 0170000, S_IFSOCK = 0140000 };

/* include/net/tcp_states.h */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
};

/* include/net/sock.h, enum sock_flags: set by sock_orphan(), and by tcp_fin() */
enum { SOCK_DEAD, SOCK_DONE };

/* include/net/sock.h */
enum { SHUTDOWN_MASK = 3 };

/* include/uapi/asm-generic/errno.h, include/linux/errno.h */
enum { EINTR = 4, EISCONN = 106, EALREADY = 114, EINPROGRESS = 115, ECANCELED = 125, ERESTARTSYS = 512 };

/*
 * The helpers that not every kernel has: whether this one does, its BTF says (HAS_HELPER).
 */
enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 158, /* from 5.11 */
	BPF_FUNC_task_pt_regs = 175,	     /* from 5.15 */
};

#define HAS_HELPER(name) bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_##name)

/* include/uapi/linux/io_uring.h, enum io_uring_op */
enum { IORING_OP_ACCEPT = 13 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		u8 u6_addr8[16];
		u32 u6_addr32[4];
	} in6_u;
};

typedef struct {
	s64 counter;
} atomic64_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
};

typedef struct {
	u32 val;
} kuid_t;

struct inode {
	u16 i_mode;
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
	void *private_data;
};

struct socket {
	struct file *file;
	struct sock *sk;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct sock {
	struct sock_common __sk_common;
	u16 sk_protocol;
	u16 sk_type;
	int sk_err;
	u8 sk_shutdown;
	kuid_t sk_uid;
	struct socket *sk_socket;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u64 bytes_sent;
	u64 bytes_retrans;
	u64 bytes_received;
	u32 total_retrans;
	u32 srtt_us;
};

struct inet_timewait_sock {
	volatile unsigned char tw_substate;
};

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
};

struct udp_sock {
	struct inet_sock inet;
};

struct sockaddr_in6 {
	unsigned short sin6_family;
	__be16 sin6_port;
	__be32 sin6_flowinfo;
	struct in6_addr sin6_addr;
};

struct mptcp_sock {
	struct sock *first;
};

struct hlist_head {
	struct hlist_node *first;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live;
};

struct task_struct {
	void *stack;
	int pid;
	int tgid;
	struct signal_struct *signal;
	u64 start_boottime;
	u32 self_exec_id;
	char comm[16];
	struct task_struct *group_leader;
	struct files_struct *files;
};

/* arch/x86/include/asm/ptrace.h; i386 calls have their own names for the same registers */
struct pt_regs___x86 {
	unsigned long ax;
	unsigned long di;
	unsigned long si;
	unsigned long orig_ax;
	unsigned long cs;
};

/* arch/arm64/include/asm/ptrace.h */
struct pt_regs___arm64 {
	u64 orig_x0;
	u64 regs[31];
	s32 syscallno;
};

/* io_uring/: a request, from 5.19, and a completion */
struct io_kiocb {
	u8 opcode;
};

struct io_uring_cqe {
	s32 res;
};

struct io_ring_ctx;

/* What cgroup/sock_create and sock_ops programs get. */
struct bpf_sock;
struct bpf_sock_ops;

/* include/trace/events/sock.h: what the tracepoint sock/inet_sock_set_state passes */
struct trace_event_raw_inet_sock_set_state {
	const void *skaddr;
	int oldstate;
	int newstate;
};

/* kernel/trace/trace.h: what syscalls/sys_exit_* tracepoints pass */
struct trace_event_raw_sys_exit {
	long id;
	long ret;
};

/* include/net/sock.h, from 6.10: the second parameter of inet_csk_accept() */
struct proto_accept_arg {
	int err;
};

/* What the kernel passes to iterators. */
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	u32 uid;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
	u32 uid;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
};

#pragma clang attribute pop

/*
 * Loads a member of *p: directly where the verifier knows from BTF what p points
 * to, by bpf_probe_read_kernel(), which takes ten times as long, where it does not.
 * direct must be a constant. A direct load through NULL gives 0, as a failed probe
 * read does.
 */
#define LOAD(direct, p, member) ((direct) ? (p)->member : BPF_CORE_READ(p, member))

/*
 * Tells the verifier what p points to, so that it can be loaded through directly:
 * kernels from 6.2 on trust the program there, and catch the fault if it is wrong.
 */
extern void *bpf_rdonly_cast(const void *p, u32 btf_id) __ksym __weak;
#define CAN_CAST (&bpf_rdonly_cast != 0)
#define CAST(p, type) ((type *)bpf_rdonly_cast(p, bpf_core_type_id_kernel(type)))
