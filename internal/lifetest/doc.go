// Package lifetest tests what only whole processes show: that nothing outlives a killed host
// process, that many runs and many host processes don't disturb each other, that a long-lived
// process does not grow, and that the library works however a program that imports it is built and
// started. It contains only tests.
package lifetest
