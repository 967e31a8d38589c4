"""Age from the volumes of regions: the comparator of every image model."""
