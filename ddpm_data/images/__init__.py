"""One dataset item becomes one uint8 image: upright, in the size and channels asked for."""
