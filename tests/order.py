"""The files of tests that come first."""

FIRST = [
    "library",
    "pipeline",
    "resume",
    "two_processes",
    "site",
    "kept_weights",
    "doctor",
    "wheel",
    "benchmark_files",
    "own_task",
    "token_budget",
    "encodings",
    "results",
    "attempts",
    "servers",
    "sharding",
    "benchmarks",
    "benchmark_grades",
    "backends",
    "controls",
]
"""The slow files first, by name without `test_`, in whatever folder they are. `make test` gives whole files to its processes, in
the order in which they come, and a process gets its next file when two tests of its last one are left: a short file just before a
long one would give both to the same."""
