#include "farm.h"

void sort_numbers(int *v, size_t n) {
	for (size_t gap = n / 2; gap; gap /= 2)
		for (size_t i = gap; i < n; i++)
			for (size_t j = i; j >= gap && v[j - gap] > v[j]; j -= gap) {
				int t = v[j];
				v[j] = v[j - gap];
				v[j - gap] = t;
			}
}
