"""A float32 bundle as one of another precision."""
