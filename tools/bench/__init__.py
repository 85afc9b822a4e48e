"""Benchmarks: how much a feature costs, always as a ratio against a named baseline measured beside it."""
