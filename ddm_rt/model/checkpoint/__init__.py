"""Stable Diffusion checkpoints and adapters as other people's tools write them."""
