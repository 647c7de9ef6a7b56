"""Datasets on disk to records and batches: one reader a format, all with the same records."""
