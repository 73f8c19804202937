"""The networks of published systems."""
