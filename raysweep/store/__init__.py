"""Artifacts on disk: nothing is visible until it is whole, and readers trust manifests only."""
