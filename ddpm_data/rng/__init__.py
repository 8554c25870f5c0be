"""Random bits as a pure function of (seed, stage, purpose, position)."""
