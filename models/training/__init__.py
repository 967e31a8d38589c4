"""Training: ``python -m models.training --help``."""
