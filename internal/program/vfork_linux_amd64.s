#include "textflag.h"

// func vfork(num, args, size uintptr) (pid uintptr, errno syscall.Errno)
//
// The child runs on the parent's stack and overwrites what lies below the
// parent's frame, the return address of this function included: it is kept in
// R12, which the kernel saves and restores for each of the two.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-40
	MOVQ	num+0(FP), AX
	MOVQ	args+8(FP), DI
	MOVQ	size+16(FP), SI
	XORQ	DX, DX
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	CMPQ	AX, $0xfffffffffffff001
	JLS	ok
	NEGQ	AX
	MOVQ	$-1, pid+24(FP)
	MOVQ	AX, errno+32(FP)
	RET
ok:
	MOVQ	AX, pid+24(FP)
	MOVQ	$0, errno+32(FP)
	RET
