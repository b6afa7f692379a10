#include "textflag.h"

// func vfork(num, args, size uintptr) (pid uintptr, errno syscall.Errno)
//
// The return address stays in the link register (R30), so nothing that the
// child does to the shared stack can change it.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-40
	MOVD	num+0(FP), R8
	MOVD	args+8(FP), R0
	MOVD	size+16(FP), R1
	SVC
	CMN	$4095, R0
	BCC	ok
	NEG	R0, R0
	MOVD	$-1, R1
	MOVD	R1, pid+24(FP)
	MOVD	R0, errno+32(FP)
	RET
ok:
	MOVD	R0, pid+24(FP)
	MOVD	ZR, errno+32(FP)
	RET
