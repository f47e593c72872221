"""The sections of `benchmarks/gpu.py`, one file each, and what they share: shapes, timing, records, bars."""
