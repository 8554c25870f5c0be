"""Images are decoded once and read from a memory map afterwards."""
