"""Decode images once, and read them from a memory map afterwards."""
