"""Evaluation: detections and ground truth become COCO's average precision.

`coco_ap` is the measure itself, on plain COCO dictionaries; `evaluate` runs a detector over a data set.
"""
