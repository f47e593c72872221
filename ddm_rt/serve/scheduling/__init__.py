"""The scheduler: requests of any size share one batch of images. It needs no web framework."""
