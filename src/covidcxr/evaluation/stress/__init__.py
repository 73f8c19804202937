"""Stress tests of a model: where it looks, and how it answers changed images."""
