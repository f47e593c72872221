"""Backends on the CPU whose arrays are numpy arrays."""
