"""Benchmarks print figures beside their targets; nothing here asserts. `make bench` runs them all."""
