"""Turn one dataset item into one uint8 image: upright, of the size and channels you ask for."""
