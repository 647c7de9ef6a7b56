"""Evaluation: COCO's average precision (`coco_ap`), and a detector on a dataset (`evaluate`)."""
