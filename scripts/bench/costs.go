package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

func printThroughput(all []*observer, none []float64) {
	g := grid{{"throughput", "with / without (median)", "range", "connections/s", "CPU a connection"}}
	for _, o := range all {
		g.add(o.name, fmt.Sprintf("%.3f", median(o.ratios)), fmt.Sprintf("%.3f to %.3f", slices.Min(o.ratios), slices.Max(o.ratios)),
			fmt.Sprintf("%.0f", median(o.rates)), fmt.Sprintf("%+.2f µs", median(o.costs)))
	}
	// What the method gives where there is nothing to measure.
	var noise []float64
	for i := 1; i+1 < len(none); i++ {
		noise = append(noise, 2*none[i]/(none[i-1]+none[i+1]))
	}
	g.add("no observer (noise)", fmt.Sprintf("%.3f", median(noise)), fmt.Sprintf("%.3f to %.3f", slices.Min(noise), slices.Max(noise)),
		fmt.Sprintf("%.0f", median(none)), fmt.Sprintf("%.2f µs in all", cores*1e6/median(none)))
	g.print()
}

func printLoss(all []*observer) {
	g := grid{{"events", "expected", "seen", "lost", "too many"}}
	for _, o := range all {
		g.add(o.name, fmt.Sprint(o.expected), fmt.Sprint(o.seen), fmt.Sprintf("%d (%.3g %%)", o.missing, 100*float64(o.missing)/float64(o.expected)), fmt.Sprint(o.more))
	}
	g.print()
	fmt.Println()
	if len(observerVersions(all)) > 0 {
		fmt.Println("Of tcplife and tcpstates the rows that tell the end of a connection are counted.")
	}
	fmt.Println("What each said itself of the last run:")
	for _, o := range all {
		fmt.Printf("- %s: %s\n", o.name, o.account)
	}
}

func printCost(all []*observer) {
	g := grid{{"the observer's own CPU time", "user, an event", "system, an event", "both, a connection", "events or rows"}}
	for _, o := range all {
		if o.rows == 0 || o.connections == 0 {
			g.add(o.name, "-", "-", "-", fmt.Sprint(o.rows))
			continue
		}
		g.add(o.name, perEvent(o.user, o.rows), perEvent(o.system, o.rows), perEvent(o.user+o.system, o.connections), fmt.Sprint(o.rows))
	}
	g.print()
}

func perEvent(t time.Duration, n uint64) string {
	return fmt.Sprintf("%.0f ns", float64(t.Nanoseconds())/float64(n))
}

func printIdle(all []*observer) {
	mb := func(bytes int) string { return digits(float64(bytes)/(1<<20)) + " MiB" }
	g := grid{{"at rest", "VmRSS", "VmHWM", "VmHWM after load", "a live socket", "wakeups/s"}}
	for _, o := range all {
		g.add(o.name, mb(o.rss), mb(o.hwm), mb(o.hwmAfter), fmt.Sprintf("%d B", o.perSocket), fmt.Sprintf("%.1f", o.wakeups))
	}
	g.print()
	fmt.Printf("\nA live socket: growth of VmRSS by %d sockets; what the kernel keeps is not in it.\nWakeups: over %v; the connections of others on the machine wake it too.\n", liveSockets, idleFor)
}

func printKernel(all []*observer, empty float64) {
	g := grid{{"BPF programs, timed by the kernel", "runs a connection", "ns a run", "ns a run, less an empty program's", "ns a connection"}}
	for _, o := range all {
		var sum kernelRun
		slices.SortFunc(o.programs, func(a, b kernelRun) int { return strings.Compare(a.name, b.name) })
		row := func(name string, r kernelRun) {
			if r.count == 0 {
				g.add(name, "0", "-", "-", "-")
				return
			}
			ns := float64(r.ns) / float64(r.count)
			g.add(name, fmt.Sprintf("%.2f", float64(r.count)/float64(o.programsServed)), fmt.Sprintf("%.0f", ns),
				fmt.Sprintf("%.0f", ns-empty), fmt.Sprintf("%.0f", float64(r.ns)/float64(o.programsServed)))
		}
		for _, r := range o.programs {
			row(o.name+": "+r.name, r)
			sum.count += r.count
			sum.ns += r.ns
		}
		row(o.name+": all", sum)
	}
	g.add("an empty program", "", fmt.Sprintf("%.0f", empty), "", "")
	g.print()
}
