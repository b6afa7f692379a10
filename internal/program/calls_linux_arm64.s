#include "textflag.h"

// The child has its own stack, and the registers of its parent: R19 keeps s. The call is indirect,
// because for the linker the stack would else go on from the parent's.
#define CLONE3(begin) \
	MOVD	$435, R8 \
	MOVD	args+0(FP), R0 \
	MOVD	$64, R1 \
	MOVD	s+8(FP), R19 \
	SVC \
	CBZ	R0, child \
	MOVD	R0, ret+16(FP) \
	RET \
child: \
	SUB	$32, RSP \
	MOVD	R19, 8(RSP) \
	MOVD	$begin, R1 \
	CALL	(R1) \
	BRK

// func rawCall(num, a, b, c, d, e, f uintptr) uintptr
TEXT ·rawCall(SB),NOSPLIT,$0-64
	MOVD	num+0(FP), R8
	MOVD	a+8(FP), R0
	MOVD	b+16(FP), R1
	MOVD	c+24(FP), R2
	MOVD	d+32(FP), R3
	MOVD	e+40(FP), R4
	MOVD	f+48(FP), R5
	SVC
	MOVD	R0, ret+56(FP)
	RET

// func spawnInit(args *cloneArgs, s *state) uintptr
TEXT ·spawnInit(SB),NOSPLIT|NOFRAME,$0-24
	CLONE3(·execute(SB))

// func spawnCommand(args *cloneArgs, s *state) uintptr
TEXT ·spawnCommand(SB),NOSPLIT|NOFRAME,$0-24
	CLONE3(·runCommand(SB))
