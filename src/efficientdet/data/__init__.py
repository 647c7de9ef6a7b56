"""Files on disk into records and samples: one reader a format, all giving the same records."""
