"""The parts of `benchmarks/faces.py`: data sets, codes, cells, measurements, tables."""
