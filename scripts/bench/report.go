package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// A grid is a Markdown table. Its first row is the header.
type grid [][]string

func (g *grid) add(cells ...string) { *g = append(*g, cells) }

func (g grid) print() {
	widths := make([]int, len(g[0]))
	for _, row := range g {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)), 3)
		}
	}
	fmt.Println()
	for n, row := range g {
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if i > 0 {
				cell, pad = pad+cell, "" // numbers
			}
			fmt.Print("| ", cell, pad, " ")
		}
		fmt.Println("|")
		if n > 0 {
			continue
		}
		for i, w := range widths {
			if i == 0 {
				fmt.Print("|:", strings.Repeat("-", w+1))
			} else {
				fmt.Print("|", strings.Repeat("-", w+1), ":")
			}
		}
		fmt.Println("|")
	}
}

// ms prints a duration of some nanoseconds in milliseconds, to three digits.
func ms(ns float64) string { return digits(ns / float64(time.Millisecond)) }

// digits prints three digits of x, or all before the point.
func digits(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}
