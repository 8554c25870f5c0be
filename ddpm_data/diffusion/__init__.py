"""Clean images and their positions become a training triple, on the device."""
