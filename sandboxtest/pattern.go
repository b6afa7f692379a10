package sandboxtest

import (
	"regexp"
	"strings"
)

// only returns a pattern for -test.run that matches the test with the given name and, of its
// subtests, those that the pattern of this process matches.
func only(name, pattern string) string {
	names := strings.Split(name, "/")
	exact := make([]string, len(names))
	for i, n := range names {
		exact[i] = "^" + regexp.QuoteMeta(n) + "$"
	}
	var choices []string
	for _, choice := range split(pattern, '|') {
		elements := split(choice, '/')
		if matches(elements, names) {
			deeper := elements[min(len(names), len(elements)):]
			choices = append(choices, strings.Join(append(exact[:len(exact):len(exact)], deeper...), "/"))
		}
	}
	if len(choices) == 0 { // package testing splits this name differently
		return strings.Join(exact, "/")
	}
	return strings.Join(choices, "|")
}

// matches reports whether each name matches its element, as far as there are elements.
func matches(elements, names []string) bool {
	for i := range min(len(elements), len(names)) {
		if ok, err := regexp.MatchString(elements[i], names[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// split splits a pattern at separators that are neither in brackets nor escaped, as package testing
// does.
func split(pattern string, at byte) (parts []string) {
	brackets, parentheses, begin := 0, 0, 0
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\':
			i++
		case c == '[':
			brackets++
		case c == ']':
			brackets = max(0, brackets-1)
		case c == '(' && brackets == 0:
			parentheses++
		case c == ')' && brackets == 0:
			parentheses--
		case c == at && brackets == 0 && parentheses == 0:
			parts = append(parts, pattern[begin:i])
			begin = i + 1
		}
	}
	return append(parts, pattern[begin:])
}
