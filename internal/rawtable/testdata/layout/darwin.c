/* macOS: bsd/sys/proc_info.h for proc_pidfdinfo; bsd/sys/socketvar.h, bsd/netinet/in_pcb.h,
 * bsd/netinet/tcp_var.h and bsd/sys/unpcb.h for the pcblist_n tables, which are packed to
 * 4 bytes. */
#include "layout.h"

enum { AF_INET6 = 30, INP_IPV4 = 1, INP_IPV6 = 2 };
enum { SOCKINFO_IN = 1, SOCKINFO_TCP = 2, SOCKINFO_UN = 3 };
enum { XSO_SOCKET = 1, XSO_RCVBUF = 2, XSO_SNDBUF = 4, XSO_STATS = 8, XSO_INPCB = 0x10, XSO_TCPCB = 0x20, XSO_UNPCB = 0x200 };

struct proc_fdinfo { i32 fd; u32 type; };

struct proc_fileinfo { u32 openflags, status; i64 offset; i32 type; u32 guardflags; };

struct vinfo_stat {
	u32 dev;
	u16 mode, nlink;
	u64 ino;
	u32 uid, gid;
	i64 times[8], size, blocks;
	i32 blksize;
	u32 flags, gen, rdev;
	i64 qspare[2];
};

union address {
	struct { u32 pad[3], v4; };
	u8 v6[16];
};

struct in_sockinfo {
	i32 fport, lport;
	u64 gencnt;
	u32 flags, flow;
	u8 vflag, ttl;
	u32 rfu;
	union address faddr, laddr;
	struct { u8 tos; } v4;
	struct { u8 hlim; i32 cksum; u16 ifindex; i16 hops; } v6;
};

struct tcp_sockinfo {
	struct in_sockinfo ini;
	i32 state, timer[4], mss;
	u32 flags, rfu;
	u64 tp;
};

struct sockaddr_un { u8 len, family, path[104]; };

union name {
	struct sockaddr_un un;
	u8 dummy[255]; /* SOCK_MAXADDRLEN */
};

struct un_sockinfo {
	u64 conn_so, conn_pcb;
	union name addr, caddr;
};

struct sockbuf_info { u32 cc, hiwat, mbcnt, mbmax, lowat; i16 flags, timeo; };

struct kern_ctl_info { u32 id, unit, flags, recvbufsize, sendbufsize, unit2; u8 name[96]; };

struct socket_info {
	struct vinfo_stat stat;
	u64 so, pcb;
	i32 type, protocol, family;
	i16 options, linger, state, qlen, incqlen, qlimit, timeo;
	u16 error;
	u32 oobmark;
	struct sockbuf_info rcv, snd;
	i32 kind;
	u32 rfu;
	union {
		struct in_sockinfo in;
		struct tcp_sockinfo tcp;
		struct un_sockinfo un;
		struct kern_ctl_info ctl;
	};
};

struct socket_fdinfo {
	struct proc_fileinfo pfi;
	struct socket_info psi;
};

struct proc_bsdinfo {
	u32 flags, status, xstatus, pid, ppid, uid, gid, ruid, rgid, svuid, svgid, rfu;
	u8 comm[16], name[32];
	u32 nfiles, pgid, pjobc, tdev, tpgid;
	i32 nice;
	u64 start_sec, start_usec;
};

#pragma pack(4)
struct xinpgen { u32 len, count; u64 gen, sogen; };

struct xinpcb_n {
	u32 len, kind;
	u64 inpp;
	u16 fport, lport;
	u64 ppcb, gencnt;
	i32 flags;
	u32 flow;
	u8 vflag, ttl, proto;
	union address faddr, laddr;
	struct { u8 tos; } v4;
	struct { u8 hlim; i32 cksum; u16 ifindex; i16 hops; } v6;
	u32 flowhash, flags2;
};

#define XSOCKET \
	u32 len, kind; \
	u64 so; \
	i16 type; \
	u32 options; \
	i16 linger, state; \
	u64 pcb; \
	i32 protocol, family; \
	i16 qlen, incqlen, qlimit, timeo; \
	u16 error; \
	i32 pgid; \
	u32 oobmark, uid; \
	i32 last_pid, e_pid;

struct xsocket_n_21 { XSOCKET }; /* to Darwin 21 */
struct xsocket_n { /* since Darwin 22 */
	XSOCKET
	u64 gencnt;
	u32 flags, flags1;
	i32 usecount, retaincnt;
	u32 filter_flags;
};

struct xsockbuf_n { u32 len, kind, cc, hiwat, mbcnt, mbmax; i32 lowat; i16 flags, timeo; };
struct xsockstat_n { u32 len, kind; u64 stats[16]; };

struct xtcpcb_n {
	u32 len, kind;
	u64 segq;
	i32 dupacks, timer[4], state;
	u32 rest[41];
};

struct xunpcb_n {
	u32 len, kind;
	u64 unpp, vnode, ino, conn, refs, reflink;
	i32 cc, mbcnt, flags;
	u64 gencnt;
	union { struct sockaddr_un un; u8 dummy[256]; } addr, caddr;
};
#pragma pack()

SIZE(darwinFDSize, struct proc_fdinfo);
OFFSET(darwinFDNumber, struct proc_fdinfo, fd);
OFFSET(darwinFDType, struct proc_fdinfo, type);
SIZE(darwinSocketSize, struct socket_fdinfo);
OFFSET(darwinSocketSo, struct socket_fdinfo, psi.so);
OFFSET(darwinSocketType, struct socket_fdinfo, psi.type);
OFFSET(darwinSocketFamily, struct socket_fdinfo, psi.family);
OFFSET(darwinSocketKind, struct socket_fdinfo, psi.kind);
OFFSET(darwinSocketFport, struct socket_fdinfo, psi.in.fport);
OFFSET(darwinSocketLport, struct socket_fdinfo, psi.in.lport);
OFFSET(darwinSocketVflag, struct socket_fdinfo, psi.in.vflag);
OFFSET(darwinSocketFaddr, struct socket_fdinfo, psi.in.faddr);
OFFSET(darwinSocketLaddr, struct socket_fdinfo, psi.in.laddr);
OFFSET(darwinSocketState, struct socket_fdinfo, psi.tcp.state);
OFFSET(darwinSocketAddr, struct socket_fdinfo, psi.un.addr);
OFFSET(darwinSocketCaddr, struct socket_fdinfo, psi.un.caddr);
OFFSET(sunPath, struct sockaddr_un, path);
SIZE(darwinProcSize, struct proc_bsdinfo);
OFFSET(darwinProcPID, struct proc_bsdinfo, pid);
OFFSET(darwinProcRUID, struct proc_bsdinfo, ruid);
OFFSET(darwinProcComm, struct proc_bsdinfo, comm);
OFFSET(darwinProcStartSec, struct proc_bsdinfo, start_sec);
OFFSET(darwinProcStartUsec, struct proc_bsdinfo, start_usec);
SIZE(darwinGenSize, struct xinpgen);
SIZE(darwinInpcbSize, struct xinpcb_n);
OFFSET(darwinInpcbFport, struct xinpcb_n, fport);
OFFSET(darwinInpcbLport, struct xinpcb_n, lport);
OFFSET(darwinInpcbVflag, struct xinpcb_n, vflag);
OFFSET(darwinInpcbFaddr, struct xinpcb_n, faddr);
OFFSET(darwinInpcbLaddr, struct xinpcb_n, laddr);
SIZE(darwinXsocketSize, struct xsocket_n);
SIZE(darwinXsocketSize21, struct xsocket_n_21);
OFFSET(darwinXsocketSo, struct xsocket_n, so);
OFFSET(darwinXsocketType, struct xsocket_n, type);
OFFSET(darwinXsocketFamily, struct xsocket_n, family);
OFFSET(darwinXsocketUID, struct xsocket_n, uid);
SIZE(darwinTcpcbSize, struct xtcpcb_n);
OFFSET(darwinTcpcbState, struct xtcpcb_n, state);
SIZE(darwinUnpcbSize, struct xunpcb_n);
OFFSET(darwinUnpcbAddr, struct xunpcb_n, addr);
OFFSET(darwinUnpcbCaddr, struct xunpcb_n, caddr);

/* What proc_pidfdinfo gave, each with the process and descriptor it was asked for. */
struct held { i32 pid, fd; struct socket_fdinfo info; };
struct held_table { struct held records[7]; };
#define HELD(p, f, key, t, fam, k, ...) \
	{ .pid = p, .fd = f, .info.psi = { .so = key, .type = t, .family = fam, .kind = k, __VA_ARGS__ } }
TABLE(struct held_table, proc_pidfdinfo) = { {
	HELD(100, 3, 0x1000, SOCK_STREAM, AF_INET, SOCKINFO_TCP, .tcp = { { .lport = PORT(8080), .vflag = INP_IPV4 }, TCPS_LISTEN }),
	HELD(100, 4, 0x2000, SOCK_STREAM, AF_INET, SOCKINFO_TCP, .tcp = { { .lport = PORT(50000), .fport = PORT(443), .vflag = INP_IPV4,
		.laddr.v4 = IPV4(10, 1, 2, 3), .faddr.v4 = IPV4(192, 0, 2, 7) }, TCPS_ESTABLISHED }),
	HELD(101, 8, 0x3000, SOCK_STREAM, AF_INET6, SOCKINFO_TCP, .tcp = { { .lport = PORT(8081), .fport = PORT(51000), .vflag = INP_IPV6,
		.laddr.v6 = IPV6_LOOPBACK, .faddr.v6 = IPV6_LOOPBACK }, TCPS_FIN_WAIT_1 }),
	HELD(101, 9, 0x5000, SOCK_DGRAM, AF_INET, SOCKINFO_IN, .in = { .lport = PORT(53), .vflag = INP_IPV4, .laddr.v4 = IPV4(127, 0, 0, 1) }),
	HELD(102, 3, 0x7000, SOCK_STREAM, AF_UNIX, SOCKINFO_UN, .un = { .conn_so = 0x8000, .caddr.un = { 2 + 11, AF_UNIX, "/tmp/a sock" } }),
	HELD(102, 5, 0xa000, SOCK_STREAM, AF_INET6, SOCKINFO_TCP, .tcp = { { .lport = PORT(8082), .fport = PORT(51001), .vflag = INP_IPV4,
		.laddr.v4 = IPV4(127, 0, 0, 1), .faddr.v4 = IPV4(127, 0, 0, 1) }, TCPS_ESTABLISHED }), /* IPv4-mapped */
	HELD(102, 4, 0x9000, 2, 32, 6), /* a kernel control socket */
} };

#define ROUND8(n) (((n) + 7) / 8 * 8)
#define PADDED(type, name) union { type name; u8 name##_padded[ROUND8(sizeof(type))]; }
#define BUF(k) { { .len = sizeof(struct xsockbuf_n), .kind = k } }
#define STATS { { .len = sizeof(struct xsockstat_n), .kind = XSO_STATS } }
#define XSO(type_, key, t, fam, proto) { { .len = sizeof(type_), .kind = XSO_SOCKET, .so = key, .type = t, .protocol = proto, .family = fam, .uid = 501, .last_pid = 100 } }
#define GEN { .len = sizeof(struct xinpgen), .count = 4, .gen = 9, .sogen = 9 }

#pragma pack(4)
#define GROUP(name, xsocket, last) \
	struct name { \
		PADDED(struct xinpcb_n, inp); \
		PADDED(xsocket, so); \
		PADDED(struct xsockbuf_n, rcv); \
		PADDED(struct xsockbuf_n, snd); \
		PADDED(struct xsockstat_n, stat); \
		last \
	}
GROUP(tcp_group, struct xsocket_n, PADDED(struct xtcpcb_n, tcp););
GROUP(udp_group, struct xsocket_n, );
GROUP(udp_group_21, struct xsocket_n_21, );
struct un_group {
	PADDED(struct xunpcb_n, unp);
	PADDED(struct xsocket_n, so);
	PADDED(struct xsockbuf_n, rcv);
	PADDED(struct xsockbuf_n, snd);
	PADDED(struct xsockstat_n, stat);
};
struct tcp { struct xinpgen head; struct tcp_group groups[4]; struct xinpgen tail; };
struct udp { struct xinpgen head; struct udp_group groups[1]; struct xinpgen tail; };
struct udp_21 { struct xinpgen head; struct udp_group_21 groups[1]; struct xinpgen tail; };
struct un { struct xinpgen head; struct un_group groups[2]; struct xinpgen tail; };
#pragma pack()

SIZE(tcp_group_size, struct tcp_group);
SIZE(udp_group_size, struct udp_group);
SIZE(udp_group_21_size, struct udp_group_21);

#define INP(...) { { .len = sizeof(struct xinpcb_n), .kind = XSO_INPCB, __VA_ARGS__ } }
#define TCPCB(s) { { .len = sizeof(struct xtcpcb_n), .kind = XSO_TCPCB, .state = s } }
#define BUFS BUF(XSO_RCVBUF), BUF(XSO_SNDBUF), STATS
TABLE(struct tcp, tcp) = { GEN, {
	{ INP(.lport = PORT(8080), .vflag = INP_IPV4), XSO(struct xsocket_n, 0x1000, SOCK_STREAM, AF_INET, PROTO_TCP), BUFS, TCPCB(TCPS_LISTEN) },
	{ INP(.lport = PORT(22), .fport = PORT(60000), .vflag = INP_IPV4, .laddr.v4 = IPV4(10, 1, 2, 3), .faddr.v4 = IPV4(192, 0, 2, 9)),
		XSO(struct xsocket_n, 0x2001, SOCK_STREAM, AF_INET, PROTO_TCP), BUFS, TCPCB(TCPS_ESTABLISHED) },
	{ INP(.lport = PORT(8081), .fport = PORT(51000), .vflag = INP_IPV6, .laddr.v6 = IPV6_LOOPBACK, .faddr.v6 = IPV6_LOOPBACK),
		XSO(struct xsocket_n, 0x3000, SOCK_STREAM, AF_INET6, PROTO_TCP), BUFS, TCPCB(TCPS_FIN_WAIT_1) },
	{ INP(.lport = PORT(8082), .vflag = INP_IPV4 | INP_IPV6), XSO(struct xsocket_n, 0x4000, SOCK_STREAM, AF_INET6, PROTO_TCP), BUFS, TCPCB(TCPS_LISTEN) },
}, GEN };

#define DNS INP(.lport = PORT(53), .vflag = INP_IPV4, .laddr.v4 = IPV4(127, 0, 0, 1))
TABLE(struct udp, udp) = { GEN, { { DNS, XSO(struct xsocket_n, 0x5000, SOCK_DGRAM, AF_INET, PROTO_UDP), BUFS } }, GEN };
TABLE(struct udp_21, udp_21) = { GEN, { { DNS, XSO(struct xsocket_n_21, 0x5000, SOCK_DGRAM, AF_INET, PROTO_UDP), BUFS } }, GEN };

#define UNP(...) { { .len = sizeof(struct xunpcb_n), .kind = XSO_UNPCB, __VA_ARGS__ } }
TABLE(struct un, unix_stream) = { GEN, {
	{ UNP(.addr.un = { 2 + 11, AF_UNIX, "/tmp/a sock" }), XSO(struct xsocket_n, 0x8000, SOCK_STREAM, AF_UNIX, 0), BUFS },
	{ UNP(.caddr.un = { 2 + 11, AF_UNIX, "/tmp/a sock" }), XSO(struct xsocket_n, 0x7000, SOCK_STREAM, AF_UNIX, 0), BUFS },
}, GEN };
