#include "textflag.h"

// The child has its own stack, and the registers of its parent: R12 keeps s. The call is indirect,
// because for the linker the stack would else go on from the parent's.
#define CLONE3(begin) \
	MOVQ	$435, AX \
	MOVQ	args+0(FP), DI \
	MOVQ	$64, SI \
	MOVQ	s+8(FP), R12 \
	SYSCALL \
	TESTQ	AX, AX \
	JZ	child \
	MOVQ	AX, ret+16(FP) \
	RET \
child: \
	SUBQ	$16, SP \
	MOVQ	R12, 0(SP) \
	LEAQ	begin, AX \
	CALL	AX \
	INT	$3

// func rawCall(num, a, b, c, d, e, f uintptr) uintptr
TEXT ·rawCall(SB),NOSPLIT,$0-64
	MOVQ	num+0(FP), AX
	MOVQ	a+8(FP), DI
	MOVQ	b+16(FP), SI
	MOVQ	c+24(FP), DX
	MOVQ	d+32(FP), R10
	MOVQ	e+40(FP), R8
	MOVQ	f+48(FP), R9
	SYSCALL
	MOVQ	AX, ret+56(FP)
	RET

// func spawnInit(args *cloneArgs, s *state) uintptr
TEXT ·spawnInit(SB),NOSPLIT,$0-24
	CLONE3(·execute(SB))

// func spawnCommand(args *cloneArgs, s *state) uintptr
TEXT ·spawnCommand(SB),NOSPLIT,$0-24
	CLONE3(·runCommand(SB))
