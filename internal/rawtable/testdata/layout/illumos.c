/* illumos and Solaris 11 on amd64: usr/src/uts/common/inet/mib2.h. Structs with members
 * of 64 bits are packed to 4 bytes, to be the same for programs of 32 bits. */
#include "layout.h"

enum { MIB2_TCP_listen = 2, MIB2_TCP_established = 5, MIB2_TCP_finWait1 = 6, MIB2_UDP_idle = 2, MIB2_UDP_connected = 3 };

#pragma pack(4)
struct info { u32 snxt, suna, swnd, rnxt, rack, rwnd, rto, mss; i32 state; };

struct mib2_tcpConnEntry {
	i32 state;
	u32 laddr;
	i32 lport;
	u32 raddr;
	i32 rport;
	struct info info;
	u32 pid;
	u64 time;
};

struct mib2_tcp6ConnEntry {
	u8 laddr[16];
	i32 lport;
	u8 raddr[16];
	i32 rport;
	u32 ifindex;
	i32 state;
	struct info info;
	u32 pid;
	u64 time;
};

struct mib2_udpEntry {
	u32 laddr;
	i32 lport;
	struct { i32 state; u32 raddr; i32 rport; } info;
	u32 instance, pid;
	u64 time;
};

struct mib2_udp6Entry {
	u8 laddr[16];
	i32 lport;
	u32 ifindex;
	struct { i32 state; u8 raddr[16]; i32 rport; } info;
	u32 instance, pid;
	u64 time;
};
#pragma pack()

struct opthdr { u32 level, name, len; }; /* sys/socket.h; t_uscalar_t is 32 bits wide */
struct T_optmgmt_req { i32 PRIM_type; u32 OPT_length, OPT_offset, MGMT_flags; }; /* sys/tihdr.h */

SIZE(illumosTCP4Size, struct mib2_tcpConnEntry);
OFFSET(illumosTCP4State, struct mib2_tcpConnEntry, state);
OFFSET(illumosTCP4Laddr, struct mib2_tcpConnEntry, laddr);
OFFSET(illumosTCP4Lport, struct mib2_tcpConnEntry, lport);
OFFSET(illumosTCP4Raddr, struct mib2_tcpConnEntry, raddr);
OFFSET(illumosTCP4Rport, struct mib2_tcpConnEntry, rport);
OFFSET(illumosTCP4PID, struct mib2_tcpConnEntry, pid);
SIZE(illumosTCP6Size, struct mib2_tcp6ConnEntry);
OFFSET(illumosTCP6Laddr, struct mib2_tcp6ConnEntry, laddr);
OFFSET(illumosTCP6Lport, struct mib2_tcp6ConnEntry, lport);
OFFSET(illumosTCP6Raddr, struct mib2_tcp6ConnEntry, raddr);
OFFSET(illumosTCP6Rport, struct mib2_tcp6ConnEntry, rport);
OFFSET(illumosTCP6State, struct mib2_tcp6ConnEntry, state);
OFFSET(illumosTCP6PID, struct mib2_tcp6ConnEntry, pid);
SIZE(illumosUDP4Size, struct mib2_udpEntry);
OFFSET(illumosUDP4Laddr, struct mib2_udpEntry, laddr);
OFFSET(illumosUDP4Lport, struct mib2_udpEntry, lport);
OFFSET(illumosUDP4PID, struct mib2_udpEntry, pid);
SIZE(illumosUDP6Size, struct mib2_udp6Entry);
OFFSET(illumosUDP6Laddr, struct mib2_udp6Entry, laddr);
OFFSET(illumosUDP6Lport, struct mib2_udp6Entry, lport);
OFFSET(illumosUDP6PID, struct mib2_udp6Entry, pid);
SIZE(illumosOpthdrSize, struct opthdr);
SIZE(illumosOptmgmtSize, struct T_optmgmt_req);

struct tcp4 { struct mib2_tcpConnEntry records[2]; };
TABLE(struct tcp4, tcp4) = { {
	{ .state = MIB2_TCP_listen, .lport = 8080, .pid = 100, .time = 5 },
	{ .state = MIB2_TCP_established, .laddr = IPV4(10, 1, 2, 3), .lport = 50000, .raddr = IPV4(192, 0, 2, 7), .rport = 443, .pid = 100 },
} };

struct tcp6 { struct mib2_tcp6ConnEntry records[1]; };
TABLE(struct tcp6, tcp6) = { {
	{ .state = MIB2_TCP_finWait1, .laddr = IPV6_LOOPBACK, .lport = 8081, .raddr = IPV6_LOOPBACK, .rport = 51000, .pid = 101 },
} };

struct udp4 { struct mib2_udpEntry records[2]; };
TABLE(struct udp4, udp4) = { {
	{ .laddr = IPV4(127, 0, 0, 1), .lport = 53, .info = { .state = MIB2_UDP_idle }, .pid = 101 },
	{ .laddr = IPV4(127, 0, 0, 1), .lport = 54, .info = { MIB2_UDP_connected, IPV4(127, 0, 0, 1), 53 }, .pid = 101 },
} };

struct udp6 { struct mib2_udp6Entry records[1]; };
TABLE(struct udp6, udp6) = { {
	{ .laddr = IPV6_LOOPBACK, .lport = 55, .info = { .state = MIB2_UDP_idle }, .pid = 102 },
} };
