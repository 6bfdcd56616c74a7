"""The doors that events come through; they enter through `control`."""
