"""Is what decides about labels right? `python -m tests.benchmarks.learning` runs all, each module runs alone."""
