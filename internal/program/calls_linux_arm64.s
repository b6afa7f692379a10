#include "textflag.h"

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

// func spawn(args *cloneArgs, s *state, begin uintptr) uintptr
//
// The child has its own stack, and the registers of its parent. It calls begin as Go functions call
// each other, with one argument and room for it on the stack: go.dev/s/regabi. The call is
// indirect, so for the linker the stack does not go on from the parent's.
TEXT ·spawn(SB),NOSPLIT|NOFRAME,$0-32
	MOVD	$435, R8
	MOVD	args+0(FP), R0
	MOVD	$64, R1
	MOVD	s+8(FP), R19
	MOVD	begin+16(FP), R20
	SVC
	CBZ	R0, child
	MOVD	R0, ret+24(FP)
	RET
child:
	SUB	$32, RSP
	MOVD	R19, R0
	CALL	(R20)
	BRK
