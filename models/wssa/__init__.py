"""WSSA: a 3D CNN with one spatial attention module shared by all its layers."""
