"""The embedded segmentation network: brain mask, tissues and the main regions at 2 mm."""
