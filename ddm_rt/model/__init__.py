"""The trainable model: diffusers' UNet with indicator-conditioned attention, the conditioner and the head C."""
