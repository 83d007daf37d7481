/* NetBSD: struct kinfo_file in sys/sys/sysctl.h, struct kinfo_pcb in sys/sys/socket.h. */
#include "layout.h"

enum { AF_INET6 = 24 };

struct kinfo_file {
	u64 fileaddr;
	u32 flag, iflags, type, count, msgcount, usecount;
	u64 ucred;
	u32 uid, gid;
	u64 ops, offset, data;
	u64 v_un, v_size;
	u32 v_type, v_tag;
	u64 v_data;
	u32 pid;
	i32 fd;
	u32 ofileflags, pad;
};

struct sockaddr_un { u8 len, family, path[104]; };
struct sockaddr_in { u8 len, family; u16 port; u32 addr; u8 zero[8]; };
struct sockaddr_in6 { u8 len, family; u16 port; u32 flowinfo; u8 addr[16]; u32 scope; };

union address {
	struct sockaddr_un un;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	u8 pad[256 + 8];
};

struct kinfo_pcb {
	u64 pcb, ppcb, so;
	u32 family, type, protocol, pflags;
	u32 sostate, prstate;
	i32 tstate;
	u32 tflags;
	u64 rcvq, sndq;
	union address src, dst;
	u64 inode, vnode, conn, refs, nextref;
};

SIZE(netbsdFileSize, struct kinfo_file);
OFFSET(netbsdFileType, struct kinfo_file, type);
OFFSET(netbsdFileData, struct kinfo_file, data);
OFFSET(netbsdFilePID, struct kinfo_file, pid);
OFFSET(netbsdFileFD, struct kinfo_file, fd);
SIZE(netbsdSockaddrSize, union address);
SIZE(netbsdPcbSize, struct kinfo_pcb);
OFFSET(netbsdPcbSocket, struct kinfo_pcb, so);
OFFSET(netbsdPcbFamily, struct kinfo_pcb, family);
OFFSET(netbsdPcbType, struct kinfo_pcb, type);
OFFSET(netbsdPcbState, struct kinfo_pcb, tstate);
OFFSET(netbsdPcbSrc, struct kinfo_pcb, src);
OFFSET(netbsdPcbDst, struct kinfo_pcb, dst);
OFFSET(sockaddrPort, struct sockaddr_in, port);
OFFSET(sockaddrIPv4, struct sockaddr_in, addr);
OFFSET(sockaddrIPv6, struct sockaddr_in6, addr);
OFFSET(sunPath, struct sockaddr_un, path);

#define PCB(key, fam, kind, proto, st, ...) \
	{ .pcb = key + 8, .so = key, .family = fam, .type = kind, .protocol = proto, .tstate = st, __VA_ARGS__ }
#define IN(p, a) { .in = { sizeof(struct sockaddr_in), AF_INET, PORT(p), a } }
#define IN6(p, ...) { .in6 = { sizeof(struct sockaddr_in6), AF_INET6, PORT(p), 0, __VA_ARGS__ } }
#define UN(length, p) { .un = { 2 + length, AF_UNIX, p } }

struct tcp4 { struct kinfo_pcb records[2]; };
TABLE(struct tcp4, tcp4) = { {
	PCB(0xffff800000001000, AF_INET, SOCK_STREAM, PROTO_TCP, TCPS_LISTEN, .src = IN(8080, 0), .dst = IN(0, 0)),
	PCB(0xffff800000002000, AF_INET, SOCK_STREAM, PROTO_TCP, TCPS_ESTABLISHED, .src = IN(50000, IPV4(10, 1, 2, 3)), .dst = IN(443, IPV4(192, 0, 2, 7))),
} };

struct tcp6 { struct kinfo_pcb records[1]; };
TABLE(struct tcp6, tcp6) = { {
	PCB(0xffff800000003000, AF_INET6, SOCK_STREAM, PROTO_TCP, TCPS_FIN_WAIT_1, .src = IN6(8081, IPV6_LOOPBACK), .dst = IN6(51000, IPV6_LOOPBACK)),
} };

struct udp4 { struct kinfo_pcb records[2]; };
TABLE(struct udp4, udp4) = { {
	PCB(0xffff800000005000, AF_INET, SOCK_DGRAM, PROTO_UDP, 0, .src = IN(53, IPV4(127, 0, 0, 1)), .dst = IN(0, 0)),
	PCB(0xffff800000006000, AF_INET, SOCK_DGRAM, PROTO_UDP, 0, .src = IN(0, 0), .dst = IN(0, 0)),
} };

struct un { struct kinfo_pcb records[2]; };
TABLE(struct un, unix_stream) = { {
	PCB(0xffff800000007000, AF_UNIX, SOCK_STREAM, 0, 0, .src = UN(11, "/tmp/a sock"), .conn = 0xffff800000008008),
	PCB(0xffff800000008000, AF_UNIX, SOCK_STREAM, 0, 0, .dst = UN(11, "/tmp/a sock"), .conn = 0xffff800000007008),
} };

#define FILE(p, f, t, d) { .type = t, .uid = 1001, .data = d, .pid = p, .fd = f }
struct files { struct kinfo_file records[8]; };
TABLE(struct files, files) = { {
	FILE(100, 0, DTYPE_VNODE, 0xffff80000000f000), FILE(100, 3, DTYPE_SOCKET, 0xffff800000001000),
	FILE(100, 4, DTYPE_SOCKET, 0xffff800000002000), FILE(101, 7, DTYPE_SOCKET, 0xffff800000001000),
	FILE(101, 8, DTYPE_SOCKET, 0xffff800000003000), FILE(101, 9, DTYPE_SOCKET, 0xffff800000005000),
	FILE(102, 3, DTYPE_SOCKET, 0xffff800000007000), FILE(102, 4, DTYPE_SOCKET, 0xffff800000008000),
} };
