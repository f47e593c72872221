"""Training on a Stable Diffusion checkpoint."""
