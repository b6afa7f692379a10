#include "farm.h"

uint64_t fibonacci(int n) {
	uint64_t a = 0, b = 1;
	while (n--) {
		uint64_t c = a + b;
		a = b;
		b = c;
	}
	return a;
}
