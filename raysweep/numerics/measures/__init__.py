"""Measures of how alike two layers' representations are, all with one signature; registry.py has them by name."""
