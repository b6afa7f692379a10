#include "textflag.h"

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

// func spawn(args *cloneArgs, s *state, begin uintptr) uintptr
//
// The child has its own stack, and the registers of its parent. It calls begin as Go functions call
// each other, with one argument and room for it on the stack: go.dev/s/regabi. The call is
// indirect, so for the linker the stack does not go on from the parent's.
TEXT ·spawn(SB),NOSPLIT,$0-32
	MOVQ	$435, AX
	MOVQ	args+0(FP), DI
	MOVQ	$64, SI
	MOVQ	s+8(FP), R12
	MOVQ	begin+16(FP), R13
	SYSCALL
	TESTQ	AX, AX
	JZ	child
	MOVQ	AX, ret+24(FP)
	RET
child:
	SUBQ	$16, SP
	MOVQ	R12, AX
	XORPS	X15, X15
	CALL	R13
	INT	$3
