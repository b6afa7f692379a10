package cli

// The library's errors with flags in place of its options.

import (
	"errors"
	"regexp"
	"strings"

	"github.com/cellkit/sandbox"
)

// each returns the wrong options of a joined error one by one, and any other error unchanged.
func each(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || !errors.As(err, new(*sandbox.OptionError)) {
		return []error{err}
	}
	return joined.Unwrap()
}

// flagNames returns the library's error with flags instead of options.
func flagNames(err error) error {
	var all []error
	for _, err := range each(err) {
		if wrong, ok := err.(*sandbox.OptionError); ok {
			all = append(all, renamed{flagName(wrong.Option) + ": " + inFlags(wrong.Err.Error()), err})
		} else { // from an image, or a run that can't start
			all = append(all, renamed{inFlags(err.Error()), err})
		}
	}
	return errors.Join(all...)
}

// flagName returns the flag that stands for an option.
func flagName(option string) string {
	switch option {
	case "WithCommand":
		return "command" // which isn't a flag
	case "AllowCIDR":
		option = "AllowHost" // one flag is for both
	case "CellWithoutUserNamespace":
		option = "WithoutUserNamespace"
	case "CellCgroupParent":
		option = "WithCgroupParent"
	}
	for _, group := range flagGroups {
		for _, f := range group.flags {
			if f.option == option {
				return "-" + f.name
			}
		}
	}
	return option
}

// optionName matches the name of an option in the library's texts. It must begin a word, so that
// names in paths don't match.
var optionName = regexp.MustCompile(`(?m)(^(?:sandbox: )?|[ (])(With[A-Za-z]+|Cell(?:Runtime|WithoutUserNamespace|CgroupParent))`)

// inFlags returns a text of the library with flags instead of options: the reason of an error, or a
// remedy. The result is only printed.
func inFlags(text string) string {
	return optionName.ReplaceAllStringFunc(text, func(found string) string {
		m := optionName.FindStringSubmatch(found)
		return strings.TrimPrefix(m[1], "sandbox: ") + flagName(m[2])
	})
}

// renamed is an error with another text.
type renamed struct {
	text string
	error
}

func (r renamed) Error() string { return r.text }
func (r renamed) Unwrap() error { return r.error }
