#include "farm.h"
#include <inttypes.h>
#include <stdio.h>

int main(void) {
	int v[] = {5, 3, 9, 1, 7};
	sort_numbers(v, 5);
	printf("crc32 %08" PRIx32 ", primes %d, sorted %d..%d, fibonacci %" PRIu64 ", collatz %d, value %" PRId64 "\n", crc32_of("123456789", 9),
	       primes_below(100000), v[0], v[4], fibonacci(50), collatz_steps(27), evaluate("(1+2)*(3+4)"));
	return 0;
}
