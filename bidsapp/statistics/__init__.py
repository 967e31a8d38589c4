"""Statistics of the brain-age gap: numbers in, numbers out, no files."""
