/* OpenBSD: struct kinfo_file in sys/sys/sysctl.h. The kernel copies as much of each
 * record as it is asked for, so a table here is an array of such beginnings. */
#include "layout.h"

enum { AF_INET6 = 24, ELEMENT = 600 };

struct kinfo_file {
	u64 fileaddr;
	u32 flag, iflags, type, count, msgcount, usecount;
	u64 ucred;
	u32 fuid, fgid;
	u64 ops, offset, data, rxfer, rwfer, seek, rbytes, wbytes;
	u64 v_un;
	u32 v_type, v_tag, v_flag, va_rdev;
	u64 v_data, v_mount, va_fileid, va_size;
	u32 va_mode, va_fsid;
	u8 mntonname[96];
	u32 so_type, so_state;
	u64 so_pcb;
	u32 so_protocol, so_family;
	u64 ppcb;
	u32 lport, laddr[4], fport, faddr[4];
	u64 unp_conn;
	u64 pipe_peer;
	u32 pipe_state, kq_count, kq_state, unused1;
	u32 pid;
	i32 fd;
	u32 ofileflags, uid, gid, tid;
	u8 comm[24];
	u32 rtableid;
	u64 splice;
	i64 splicelen;
	u64 rcv_cc, snd_cc, unp_refs, unp_nextref, unp_addr;
	u8 path[104];
	u32 proto, state;
	u64 rcv_wnd, snd_wnd, snd_cwnd;
	u32 va_nlink;
};

SIZE(openbsdFileKernelSize, struct kinfo_file);
OFFSET(openbsdFileType, struct kinfo_file, type);
OFFSET(openbsdFileData, struct kinfo_file, data);
OFFSET(openbsdFileSoType, struct kinfo_file, so_type);
OFFSET(openbsdFileFamily, struct kinfo_file, so_family);
OFFSET(openbsdFileLport, struct kinfo_file, lport);
OFFSET(openbsdFileLaddr, struct kinfo_file, laddr);
OFFSET(openbsdFileFport, struct kinfo_file, fport);
OFFSET(openbsdFileFaddr, struct kinfo_file, faddr);
OFFSET(openbsdFilePID, struct kinfo_file, pid);
OFFSET(openbsdFileFD, struct kinfo_file, fd);
OFFSET(openbsdFileComm, struct kinfo_file, comm);
OFFSET(openbsdFilePath, struct kinfo_file, path);
OFFSET(openbsdFileState, struct kinfo_file, state);

union element {
	struct kinfo_file file;
	u8 bytes[ELEMENT];
};

#define SOCK(p, f, ...) { .type = DTYPE_SOCKET, .fileaddr = 0xd000 + f, .data = 0xe000 + 256 * f, .pid = p, .fd = f, .uid = 1000, .comm = "nginx", __VA_ARGS__ }

/* Laid one behind the other, each cut to ELEMENT bytes: see layout_test.go. */
struct files { struct kinfo_file records[8]; };
TABLE(struct files, files) = { {
	{ .type = DTYPE_VNODE, .pid = 100, .fd = -1, .uid = 1000, .comm = "nginx" },
	SOCK(100, 3, .so_type = SOCK_STREAM, .so_protocol = PROTO_TCP, .so_family = AF_INET, .lport = PORT(8080), .proto = PROTO_TCP, .state = TCPS_LISTEN),
	SOCK(100, 4, .so_type = SOCK_STREAM, .so_protocol = PROTO_TCP, .so_family = AF_INET, .lport = PORT(50000), .laddr = { IPV4(10, 1, 2, 3) },
		.fport = PORT(443), .faddr = { IPV4(192, 0, 2, 7) }, .proto = PROTO_TCP, .state = TCPS_ESTABLISHED),
	SOCK(101, 5, .so_type = SOCK_STREAM, .so_protocol = PROTO_TCP, .so_family = AF_INET6, .lport = PORT(8081), .laddr = { 0, 0, 0, 1 << 24 },
		.fport = PORT(51000), .faddr = { 0, 0, 0, 1 << 24 }, .proto = PROTO_TCP, .state = TCPS_FIN_WAIT_1),
	SOCK(101, 6, .so_type = SOCK_DGRAM, .so_protocol = PROTO_UDP, .so_family = AF_INET, .lport = PORT(53), .laddr = { IPV4(127, 0, 0, 1) }, .proto = PROTO_UDP),
	SOCK(101, 7, .so_type = SOCK_DGRAM, .so_protocol = PROTO_UDP, .so_family = AF_INET6, .proto = PROTO_UDP),
	SOCK(102, 8, .so_type = SOCK_STREAM, .so_family = AF_UNIX, .path = "/tmp/a sock"),
	SOCK(102, 9, .so_type = 3, .so_protocol = 1, .so_family = AF_INET), /* raw ICMP */
} };
