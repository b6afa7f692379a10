// Package covered has functions of which tests cover one each.
package covered

func Outside() int { return 1 }

func Inside() int { return 2 }

func Nowhere() int { return 3 }
