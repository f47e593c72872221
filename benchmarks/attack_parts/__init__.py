"""Attacks on a server over raw sockets, for benchmarks/attacks.py."""
