// The tables of tcpmib.h and udpmib.h, as Microsoft documents them, with rows in which
// every member has a value of its own. windows_test.go compiles this for each
// architecture of Windows and decodes what comes out.

typedef unsigned long DWORD;
typedef unsigned char UCHAR;

typedef struct {
	DWORD dwState, dwLocalAddr, dwLocalPort, dwRemoteAddr, dwRemotePort, dwOwningPid;
} MIB_TCPROW_OWNER_PID;

typedef struct {
	UCHAR ucLocalAddr[16];
	DWORD dwLocalScopeId, dwLocalPort;
	UCHAR ucRemoteAddr[16];
	DWORD dwRemoteScopeId, dwRemotePort, dwState, dwOwningPid;
} MIB_TCP6ROW_OWNER_PID;

typedef struct {
	DWORD dwLocalAddr, dwLocalPort, dwOwningPid;
} MIB_UDPROW_OWNER_PID;

typedef struct {
	UCHAR ucLocalAddr[16];
	DWORD dwLocalScopeId, dwLocalPort, dwOwningPid;
} MIB_UDP6ROW_OWNER_PID;

#define TABLE(row, n) struct { DWORD dwNumEntries; row table[n]; }

// An address is in network byte order. A port is too, in the low half of a DWORD; the
// high half is undefined.
#define IP(a, b, c, d) ((DWORD)(d) << 24 | (c) << 16 | (b) << 8 | (a))
#define PORT(p) (0xabcd0000ul | ((p) & 0xff) << 8 | (p) >> 8)

const TABLE(MIB_TCPROW_OWNER_PID, 4) tcp4 = {4, {
	{.dwState = 5, .dwLocalAddr = IP(192, 0, 2, 1), .dwLocalPort = PORT(49152),
	 .dwRemoteAddr = IP(198, 51, 100, 2), .dwRemotePort = PORT(443), .dwOwningPid = 4321},
	{.dwState = 2, .dwLocalAddr = 0, .dwLocalPort = PORT(80),
	 .dwRemoteAddr = IP(1, 2, 3, 4), .dwRemotePort = PORT(5), .dwOwningPid = 4},
	{.dwState = 11, .dwLocalAddr = IP(192, 0, 2, 1), .dwLocalPort = PORT(49153),
	 .dwRemoteAddr = IP(198, 51, 100, 2), .dwRemotePort = PORT(443), .dwOwningPid = 0},
	{.dwState = 1, .dwOwningPid = 7},
}};

const TABLE(MIB_TCP6ROW_OWNER_PID, 2) tcp6 = {2, {
	{.ucLocalAddr = {0x20, 1, 0xd, 0xb8, [15] = 1}, .dwLocalScopeId = 0x11111111, .dwLocalPort = PORT(50000),
	 .ucRemoteAddr = {0x20, 1, 0xd, 0xb8, [15] = 2}, .dwRemoteScopeId = 0x22222222, .dwRemotePort = PORT(8443),
	 .dwState = 12, .dwOwningPid = 1234},
	{.dwLocalScopeId = 0x33333333, .dwLocalPort = PORT(445), .dwRemoteScopeId = 0x44444444, .dwState = 2, .dwOwningPid = 4},
}};

const TABLE(MIB_UDPROW_OWNER_PID, 2) udp4 = {2, {
	{.dwLocalAddr = IP(127, 0, 0, 1), .dwLocalPort = PORT(53), .dwOwningPid = 99},
	{.dwLocalAddr = IP(10, 0, 0, 1), .dwLocalPort = 0, .dwOwningPid = 100},
}};

const TABLE(MIB_UDP6ROW_OWNER_PID, 2) udp6 = {2, {
	{.ucLocalAddr = {0xfe, 0x80, [15] = 9}, .dwLocalScopeId = 0x55555555, .dwLocalPort = PORT(5353), .dwOwningPid = 77},
	{.ucLocalAddr = {0}, .dwLocalPort = PORT(546), .dwOwningPid = 78},
}};
