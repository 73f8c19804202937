"""Small helpers: lazy names, threads, the console, plain data."""
