"""The parts of `benchmarks/latent_digits.py`: base checkpoint, image folder, cells, table."""
