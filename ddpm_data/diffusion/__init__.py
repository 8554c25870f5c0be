"""Turn clean images and their positions into a training triple, on the device."""
