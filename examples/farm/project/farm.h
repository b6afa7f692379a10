/* A small program in several files, so that there is something to compile. */
#include <stddef.h>
#include <stdint.h>

uint32_t crc32_of(const void *data, size_t n);
int primes_below(int n);
void sort_numbers(int *v, size_t n);
uint64_t fibonacci(int n);
int collatz_steps(uint64_t n);
int64_t evaluate(const char *expression);
