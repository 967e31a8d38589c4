"""A small CNN at 4 mm."""
