"""Scripts that measure: ``python -m benchmarks.NAME``."""
