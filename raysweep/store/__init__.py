"""Artifacts on disk: nothing is visible until it is complete, and readers trust manifests only."""
