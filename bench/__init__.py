"""Benchmarks of the whole job at full size. Not part of the package, not run by the tests."""
