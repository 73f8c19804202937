"""Predictions: read, checked and joined with what is known of the images."""
