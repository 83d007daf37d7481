"""Times psutil's net_connections('tcp'), in turns: once for every line on standard
input, each outcome a line of JSON (package turns)."""

import json
import sys
import time

import psutil

for _ in sys.stdin:
    start = time.perf_counter_ns()
    rows = psutil.net_connections("tcp")
    ns = time.perf_counter_ns() - start
    print(json.dumps({"ns": ns, "rows": len(rows), "note": psutil.__version__}), flush=True)
    del rows
