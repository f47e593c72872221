"""Serving: requests of any size share one batch, and none changes another's images."""
