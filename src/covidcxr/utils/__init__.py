"""Small helpers without a subject of their own: lazy names, threads, the console."""
