"""The sampling loop: images join and leave one batch between steps."""
