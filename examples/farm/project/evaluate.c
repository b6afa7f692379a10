#include "farm.h"
#include <stdlib.h>

static int64_t sum(const char **p);

static int64_t number(const char **p) {
	if (**p == '(') {
		++*p;
		int64_t v = sum(p);
		++*p;
		return v;
	}
	char *end;
	int64_t v = strtoll(*p, &end, 10);
	*p = end;
	return v;
}

static int64_t product(const char **p) {
	int64_t v = number(p);
	while (**p == '*') {
		++*p;
		v *= number(p);
	}
	return v;
}

static int64_t sum(const char **p) {
	int64_t v = product(p);
	while (**p == '+') {
		++*p;
		v += product(p);
	}
	return v;
}

int64_t evaluate(const char *expression) { return sum(&expression); }
