#include "textflag.h"

TEXT procListPIDs<>(SB), NOSPLIT, $0-0
	JMP	libproc_proc_listpids(SB)

TEXT procPIDInfo<>(SB), NOSPLIT, $0-0
	JMP	libproc_proc_pidinfo(SB)

TEXT procPIDFDInfo<>(SB), NOSPLIT, $0-0
	JMP	libproc_proc_pidfdinfo(SB)

GLOBL	·procListPIDsTrampoline(SB), RODATA, $8
DATA	·procListPIDsTrampoline(SB)/8, $procListPIDs<>(SB)

GLOBL	·procPIDInfoTrampoline(SB), RODATA, $8
DATA	·procPIDInfoTrampoline(SB)/8, $procPIDInfo<>(SB)

GLOBL	·procPIDFDInfoTrampoline(SB), RODATA, $8
DATA	·procPIDFDInfoTrampoline(SB)/8, $procPIDFDInfo<>(SB)
