/* FreeBSD 12 to 15: sys/sys/socketvar.h, sys/netinet/in_pcb.h, sys/netinet/tcp_var.h,
 * sys/sys/unpcb.h, sys/sys/file.h, sys/sys/user.h. Addresses and sizes are 64 bits wide
 * on every architecture (kvaddr_t, ksize_t). */
#include "layout.h"

enum { AF_INET6 = 28, INP_IPV4 = 1, INP_IPV6 = 2 };

struct xsockbuf {
	u32 cc, hiwat, mbcnt, mcnt, ccnt, mbmax;
	i32 lowat, timeo;
	i16 flags;
};

struct xsocket {
	u64 len, so, pcb, oobmark;
	i64 spare64[8];
	i32 protocol, family;
	u32 qlen, incqlen, qlimit;
	i32 pgid;
	u32 uid;
	i32 spare32[8];
	i16 type, options, linger, state, timeo;
	u16 error;
	struct xsockbuf rcv, snd;
};

union address {
	struct { u32 pad[3], v4; };
	u8 v6[16];
};

struct xinpcb {
	u64 len;
	struct xsocket socket;
	struct { /* in_conninfo */
		u8 flags, len;
		u16 fibnum;
		u16 fport, lport;
		union address faddr, laddr;
		u32 zoneid;
	} inc;
	u64 gencnt, ppcb;
	i64 spare64[4];
	u32 flow, flowid, flowtype;
	i32 flags, flags2, rss_listen_bucket, cksum, spare32[4];
	u16 hops;
	u8 tos;
	u8 pad8;
	u8 vflag, ttl, proto, minttl;
	u8 spare8[4];
} __attribute__((aligned(8)));

struct xtcpcb {
	u64 len;
	struct xinpcb inp;
	u8 stack[32], logid[64], cc[16];
	i64 spare64[6];
	i32 state;
	u32 flags;
	i32 counters[10];
	u32 windows[6];
	i32 spare32[26];
} __attribute__((aligned(8)));

struct xinpgen {
	u64 len;
	u32 count, spare32;
	u64 gen, sogen, spare64[4];
} __attribute__((aligned(8)));

struct sockaddr_un {
	u8 len, family, path[104];
};

struct xunpcb {
	u64 len, unpp, vnode, conn, firstref, nextref, gencnt;
	i64 spare64[8];
	i32 spare32[8];
	union { struct sockaddr_un addr; u8 dummy1[256]; };
	union { struct sockaddr_un caddr; u8 dummy2[256]; };
	struct xsocket socket;
} __attribute__((aligned(8)));

struct xunpgen {
	u64 len;
	u32 count;
	u64 gen, sogen;
} __attribute__((aligned(8)));

struct xfile {
	u64 size;
	i32 pid;
	u32 uid;
	i32 fd, pad1;
	u64 file;
	i16 type, pad2;
	i32 count, msgcount, pad3;
	i64 offset;
	u64 data, vnode;
	u32 flag;
	i32 pad4;
	i64 pad5[6];
};

/* Pointers are 64 bits wide here only on machines of 64 bits. */
typedef long ptr;
#ifdef __arm__
typedef i64 time_type; /* time_t */
#else
typedef long time_type;
#endif
struct timeval { time_type sec; long usec; };
struct rusage { struct timeval utime, stime; long counters[14]; };

struct kinfo_proc {
	i32 structsize, layout;
	ptr args, paddr, addr, tracep, textvp, fd, vmspace, wchan;
	i32 pid, ppid, pgid, tpgid, sid, tsid;
	i16 jobc, spare1;
	u32 tdev11;
	u32 sigsets[4][4];
	u32 uid, ruid, svuid, rgid, svgid;
	i16 ngroups, spare2;
	u32 groups[16];
	unsigned long size;
	long rssize, swrss, tsize, dsize, ssize;
	u16 xstat, acflag;
	u32 pctcpu, estcpu, slptime, swtime, cow;
	u64 runtime;
	struct timeval start, childtime;
	long flag, kiflag;
	i32 traceflag;
	u8 stat, nice, lock, rqindex, oncpu_old, lastcpu_old;
	u8 tdname[17], wmesg[9], login[18], lockname[9], comm[20], emul[17], loginclass[18], moretdname[4], sparestrings[46];
	i32 spareints[2];
	u64 tdev;
	i32 oncpu, lastcpu, tracer, flag2, fibnum;
	u32 cr_flags;
	i32 jid, numthreads, tid;
	u8 pri[4];
	struct rusage rusage, rusage_ch;
	ptr pcb, kstack, udata, tdaddr, pd, spareptrs[5];
	long sparelongs[12], sflag, tdflags;
};

SIZE(freebsdProcSize, struct kinfo_proc);
OFFSET(freebsdProcPID, struct kinfo_proc, pid);
OFFSET(freebsdProcRUID, struct kinfo_proc, ruid);
OFFSET(freebsdProcStartSec, struct kinfo_proc, start.sec);
OFFSET(freebsdProcStartUsec, struct kinfo_proc, start.usec);
OFFSET(freebsdProcComm, struct kinfo_proc, comm);

SIZE(freebsdInpGenSize, struct xinpgen);
SIZE(freebsdUnpGenSize, struct xunpgen);
SIZE(freebsdInpcbSize, struct xinpcb);
OFFSET(freebsdInpcbSocket, struct xinpcb, socket.so);
OFFSET(freebsdInpcbFamily, struct xinpcb, socket.family);
OFFSET(freebsdInpcbUID, struct xinpcb, socket.uid);
OFFSET(freebsdInpcbType, struct xinpcb, socket.type);
OFFSET(freebsdInpcbFport, struct xinpcb, inc.fport);
OFFSET(freebsdInpcbLport, struct xinpcb, inc.lport);
OFFSET(freebsdInpcbFaddr, struct xinpcb, inc.faddr);
OFFSET(freebsdInpcbLaddr, struct xinpcb, inc.laddr);
OFFSET(freebsdInpcbVflag, struct xinpcb, vflag);
SIZE(freebsdTcpcbSize, struct xtcpcb);
OFFSET(freebsdTcpcbInpcb, struct xtcpcb, inp);
OFFSET(freebsdTcpcbState, struct xtcpcb, state);
SIZE(freebsdUnpcbSize, struct xunpcb);
OFFSET(freebsdUnpcbAddr, struct xunpcb, addr);
OFFSET(freebsdUnpcbSocket, struct xunpcb, socket.so);
OFFSET(freebsdUnpcbUID, struct xunpcb, socket.uid);
OFFSET(freebsdUnpcbType, struct xunpcb, socket.type);
OFFSET(sunPath, struct sockaddr_un, path);
SIZE(freebsdFileSize, struct xfile);
OFFSET(freebsdFilePID, struct xfile, pid);
OFFSET(freebsdFileFD, struct xfile, fd);
OFFSET(freebsdFileType, struct xfile, type);
OFFSET(freebsdFileData, struct xfile, data);

#define SO(key, fam, kind, proto) \
	{ .len = sizeof(struct xsocket), .so = key, .pcb = key + 8, .protocol = proto, .family = fam, .uid = 1001, .type = kind }
#define INP(key, fam, kind, proto, flag, ...) \
	{ .len = sizeof(struct xinpcb), .socket = SO(key, fam, kind, proto), .inc = { __VA_ARGS__ }, .gencnt = 77, .vflag = flag }
#define TCP(st, ...) { .len = sizeof(struct xtcpcb), .inp = INP(__VA_ARGS__), .state = st }
#define GEN { .len = sizeof(struct xinpgen), .count = 3, .gen = 99, .sogen = 99 }
#define UNGEN { .len = sizeof(struct xunpgen), .count = 2, .gen = 99, .sogen = 99 }

struct tcp { struct xinpgen head; struct xtcpcb records[6]; struct xinpgen tail; };
TABLE(struct tcp, tcp) = { GEN, {
	TCP(TCPS_LISTEN, 0xfffff80000001000, AF_INET, SOCK_STREAM, PROTO_TCP, INP_IPV4,
		.lport = PORT(8080)),
	TCP(TCPS_ESTABLISHED, 0xfffff80000002000, AF_INET, SOCK_STREAM, PROTO_TCP, INP_IPV4,
		.fport = PORT(443), .lport = PORT(50000), .faddr.v4 = IPV4(192, 0, 2, 7), .laddr.v4 = IPV4(10, 1, 2, 3)),
	TCP(TCPS_FIN_WAIT_1, 0xfffff80000003000, AF_INET6, SOCK_STREAM, PROTO_TCP, INP_IPV6,
		.fport = PORT(51000), .lport = PORT(8081), .faddr.v6 = IPV6_LOOPBACK, .laddr.v6 = IPV6_LOOPBACK),
	TCP(TCPS_LISTEN, 0xfffff80000004000, AF_INET6, SOCK_STREAM, PROTO_TCP, INP_IPV4 | INP_IPV6,
		.lport = PORT(8082)),
	TCP(TCPS_ESTABLISHED, 0xfffff80000009000, AF_INET6, SOCK_STREAM, PROTO_TCP, INP_IPV4, /* IPv4-mapped */
		.fport = PORT(51001), .lport = PORT(8082), .faddr.v4 = IPV4(127, 0, 0, 1), .laddr.v4 = IPV4(127, 0, 0, 1)),
	TCP(TCPS_TIME_WAIT, 0, 0, 0, PROTO_TCP, INP_IPV4, /* no socket any more */
		.fport = PORT(51002), .lport = PORT(8083), .faddr.v4 = IPV4(127, 0, 0, 1), .laddr.v4 = IPV4(127, 0, 0, 1)),
}, GEN };

struct udp { struct xinpgen head; struct xinpcb records[2]; struct xinpgen tail; };
TABLE(struct udp, udp) = { GEN, {
	INP(0xfffff80000005000, AF_INET, SOCK_DGRAM, PROTO_UDP, INP_IPV4, .lport = PORT(53), .laddr.v4 = IPV4(127, 0, 0, 1)),
	INP(0xfffff80000006000, AF_INET6, SOCK_DGRAM, PROTO_UDP, INP_IPV6, .lport = 0),
}, GEN };

struct un { struct xunpgen head; struct xunpcb records[2]; struct xunpgen tail; };
TABLE(struct un, unix_stream) = { UNGEN, {
	{ .len = sizeof(struct xunpcb), .unpp = 1, .addr = { 2 + 11, AF_UNIX, "/tmp/a sock" }, .socket = SO(0xfffff80000007000, AF_UNIX, SOCK_STREAM, 0) },
	{ .len = sizeof(struct xunpcb), .unpp = 2, .conn = 1, .socket = SO(0xfffff80000008000, AF_UNIX, SOCK_STREAM, 0) },
}, UNGEN };

#define FILE(p, f, t, d) { .size = sizeof(struct xfile), .pid = p, .uid = 1001, .fd = f, .type = t, .data = d }
struct files { struct xfile records[9]; };
TABLE(struct files, files) = { {
	FILE(100, 0, DTYPE_VNODE, 0xfffff8000000f000), FILE(100, 3, DTYPE_SOCKET, 0xfffff80000001000),
	FILE(100, 4, DTYPE_SOCKET, 0xfffff80000002000), FILE(101, 7, DTYPE_SOCKET, 0xfffff80000001000),
	FILE(101, 8, DTYPE_SOCKET, 0xfffff80000003000), FILE(101, 9, DTYPE_SOCKET, 0xfffff80000005000),
	FILE(102, 3, DTYPE_SOCKET, 0xfffff80000007000), FILE(102, 4, DTYPE_SOCKET, 0xfffff80000007000),
	FILE(102, 5, DTYPE_SOCKET, 0xfffff80000009000),
} };
