"""Sizes of images in pixels, and the shapes of their latents."""

from ddm_rt.bundle import Bundle

Shape = tuple[int, int, int]  # C, H, W of latents
Size = tuple[int, int]  # height and width in pixels


def latent_shape(bundle: Bundle, size: Size) -> Shape:
    """Shape of the latents of images of `size`."""
    config = bundle.config
    channels, height, width = config.latent_shape
    return channels, size[0] * height // config.image_size, size[1] * width // config.image_size


def image_size(bundle: Bundle, shape: Shape) -> Size:
    """Size of images whose latents have this shape."""
    config = bundle.config
    _, height, width = config.latent_shape
    return shape[1] * config.image_size // height, shape[2] * config.image_size // width
