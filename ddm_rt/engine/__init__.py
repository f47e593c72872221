"""Backends behind one contract: conditioner, denoiser, decoder and guided_step over its own arrays."""
