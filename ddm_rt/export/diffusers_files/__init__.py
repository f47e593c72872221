"""Files that are copied into an exported diffusers folder: they import nothing of this project."""
