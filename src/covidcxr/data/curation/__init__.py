"""Curation of data sets: integrity checks, duplicates and compact copies."""
