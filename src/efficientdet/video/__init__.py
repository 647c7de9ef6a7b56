"""Frames of videos and cameras; tracks, counts and annotated videos of what was found in them."""
