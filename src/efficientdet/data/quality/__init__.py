"""What may be wrong with a dataset: boxes, classes, images and anchors; the report on it, and fixes."""
