// Package covered has functions that are each covered by one test.
package covered

func Outside() int { return 1 }

func Inside() int { return 2 }

func Nowhere() int { return 3 }
