"""Any dataset becomes batches of images with their positions, in worker processes."""
