"""Checkpoints and their decoder layers: opening, checking pairs, calling layers one by one, replacing layers."""
