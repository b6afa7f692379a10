#include "farm.h"

uint32_t crc32_of(const void *data, size_t n) {
	const unsigned char *p = data;
	uint32_t crc = ~0u;
	while (n--) {
		crc ^= *p++;
		for (int i = 0; i < 8; i++)
			crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
	}
	return ~crc;
}
