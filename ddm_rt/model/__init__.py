"""The trainable model: diffusers' UNet with indicator attention, the conditioner and the head C."""
