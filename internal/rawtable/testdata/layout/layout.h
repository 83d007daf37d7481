/* What the layout files share. Each is compiled for the ABI of its system, without
 * that system's headers: a struct holds the members of the kernel's, in its order and
 * of its types, so that the compiler gives the offsets that the kernel uses. The
 * symbols of the section "layout" are compared with the constants of the decoders;
 * those of "fixture" are tables as the kernel would write them. See layout_test.go. */

typedef __UINT8_TYPE__ u8;
typedef __UINT16_TYPE__ u16;
typedef __UINT32_TYPE__ u32;
typedef __UINT64_TYPE__ u64;
typedef __INT16_TYPE__ i16;
typedef __INT32_TYPE__ i32;
typedef __INT64_TYPE__ i64;

#ifdef __APPLE__
#define SECTION(name) __attribute__((used, section("__DATA," name)))
#else
#define SECTION(name) __attribute__((used, section(name)))
#endif

#define OFFSET(name, type, member) const u32 name SECTION("layout") = __builtin_offsetof(type, member)
#define SIZE(name, type) const u32 name SECTION("layout") = sizeof(type)

/* A table is a struct of its records; its size goes to "layout" as NAME_size. */
#define TABLE(type, name) SIZE(name##_size, type); const type name SECTION("fixture")

/* Numbers in network byte order, on a little-endian machine. */
#define PORT(p) ((u16)((p) >> 8 | (p) << 8))
#define IPV4(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)
#define IPV6_LOOPBACK {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}

/* States of netinet/tcp_fsm.h, the same on all BSDs and macOS. */
enum { TCPS_LISTEN = 1, TCPS_ESTABLISHED = 4, TCPS_FIN_WAIT_1 = 6, TCPS_TIME_WAIT = 10 };
enum { AF_UNIX = 1, AF_INET = 2, SOCK_STREAM = 1, SOCK_DGRAM = 2, DTYPE_VNODE = 1, DTYPE_SOCKET = 2, PROTO_TCP = 6, PROTO_UDP = 17 };
