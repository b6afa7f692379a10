// Package attack is hostile code in runs, functions and images, and tests that hold it: SECURITY.md says what it is about.
package attack
