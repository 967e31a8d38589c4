"""BrainRotViT: a vision transformer over slices and a residual CNN over their features."""
