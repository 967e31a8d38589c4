"""Age as a weighted sum of a smoothed tissue map."""
