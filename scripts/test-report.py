#!/usr/bin/env python3
"""test-report.py NAME SKIPPED: reads `go test -json`, prints it for people.

A line for each package, the output of each failed test, and the counts. What was
skipped is appended to the file SKIPPED with its reason. Exit status 1 if a test
failed, or if none ran.
"""
import json
import sys

name, skipped_file = sys.argv[1:]
output = {}
counts = {"pass": 0, "fail": 0, "skip": 0}
broken = False
for line in sys.stdin:
    try:
        event = json.loads(line)
    except ValueError:
        print(line, end="")
        continue
    if event.get("Action") == "build-output":
        print(event["Output"], end="")
        continue
    if event.get("Action") == "build-fail":
        broken = True
        continue
    package, test, action = event.get("Package", ""), event.get("Test", ""), event["Action"]
    key = (package, test)
    if action == "output":
        output.setdefault(key, []).append(event["Output"])
    elif action in counts:
        text = "".join(output.pop(key, []))
        if test:
            counts[action] += 1
        if action == "fail":
            broken = True
            print(text, end="")
        elif not test and action == "pass":
            print(text.rstrip().splitlines()[-1] if text.strip() else f"ok  \t{package}")
        elif test and action == "skip":
            reason = " ".join(l.strip() for l in text.splitlines() if not l.lstrip().startswith(("===", "---")))
            with open(skipped_file, "a") as f:
                f.write(f"{name}: {package.rsplit('/', 1)[-1]}: {test}: {reason}\n")
print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
sys.exit(1 if broken or counts["pass"] == 0 else 0)
