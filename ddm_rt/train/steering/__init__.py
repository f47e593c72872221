"""Codes for a finished model without training: directions of its own responses."""
