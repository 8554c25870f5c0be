"""Scripts that measure: ``python -m benchmarks.<name>``."""
