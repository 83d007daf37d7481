// Package turns is what the benchmark and the programs that it runs say to each
// other.
package turns

import (
	"bufio"
	"encoding/json"
	"os"
	"runtime"
	"time"
)

// A Call is the outcome of one call that was timed in a process of its own.
type Call struct {
	NS     int64  `json:"ns"`
	Rows   int    `json:"rows"`
	Allocs uint64 `json:"allocs"` // by the Go heap
	Error  string `json:"error"`
	Note   string `json:"note"` // a version, or what was called
}

// Serve makes the call once for every line on standard input and prints each
// [Call] as a line of JSON, so that processes can take turns. note is called after
// the first call.
func Serve(note func() string, call func() (rows int, err error)) error {
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		rows, err := call()
		c := Call{NS: time.Since(start).Nanoseconds(), Rows: rows}
		runtime.ReadMemStats(&after)
		c.Allocs = after.Mallocs - before.Mallocs
		if err != nil {
			c.Error = err.Error()
		} else if note != nil {
			c.Note, note = note(), nil
		}
		if err := out.Encode(c); err != nil {
			return err
		}
	}
	return in.Err()
}

// Loads are what the load generator can do; its own comment explains them.
var Loads = []string{"request", "fin", "bare"}

// A Load is what the load generator did.
type Load struct {
	Connects uint64  `json:"connects"` // connections established
	Accepts  uint64  `json:"accepts"`  // connections accepted
	Failures uint64  `json:"failures"` // attempts that failed
	Seconds  float64 `json:"seconds"`
}

// LoadNet begins the addresses of the load generator's servers, and of nothing
// else: the connections of others on the machine are not counted.
const LoadNet = "127.77."

// LoadAddress returns the address of server n.
func LoadAddress(n int) [4]byte { return [4]byte{127, 77, 0, byte(n + 1)} }

// A Stream is what a subscriber of the library saw.
type Stream struct {
	ByType map[string]uint64 `json:"by_type"` // the load generator's events
	Others uint64            `json:"others"`  // everybody else's
	Stats  struct {
		Seen, Delivered, RingFull, Recursion, MapFull, SlowSubscriber uint64
	} `json:"stats"`
	Hooks []string `json:"hooks"`
}
