"""Codes of the training images: discovered, read from a file, or from a few labels."""
