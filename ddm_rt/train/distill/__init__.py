"""Students, which need fewer steps than their teachers, and small decoders."""
