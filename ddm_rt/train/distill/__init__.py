"""Students: models that need fewer steps."""
