"""Backends behind one contract: conditioner, denoiser, decoder and guided_step over a backend's own arrays."""
