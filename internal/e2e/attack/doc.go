// Package attack contains hostile code in runs, functions and images, and tests that require that
// it fails. SECURITY.md says what the attacks are about.
package attack
