#include "farm.h"

int collatz_steps(uint64_t n) {
	int steps = 0;
	for (; n > 1; steps++)
		n = n % 2 ? 3 * n + 1 : n / 2;
	return steps;
}
