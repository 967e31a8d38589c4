"""Raw T1w to what a model takes: one step a module, each ``(image, ...) -> (result, record)``."""
