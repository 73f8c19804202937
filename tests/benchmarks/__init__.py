"""Measurements: scripts that print, and the parts of them that tests run."""
