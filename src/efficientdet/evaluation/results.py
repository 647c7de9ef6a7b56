"""Detections of a batch in the form that the COCO evaluator takes."""

from __future__ import annotations

from typing import Any

from efficientdet.data.records import Records
from efficientdet.inference.postprocess import BatchDetections


def batch_results(found: BatchDetections, indices: list[int], records: Records) -> list[dict[str, Any]]:
    """COCO results of a batch.

    Args:
        found: detections in original pixels; labels are those of the records.
        indices: places of the batch's pictures in the records.
        records: the split.

    Returns:
        One dict a detection: image_id, category_id (the data set's own), bbox xywh, score.
    """
    boxes, scores = found.boxes_xyxy.cpu().tolist(), found.scores.cpu().tolist()
    labels, counts = found.labels.cpu().tolist(), found.counts.cpu().tolist()
    results = []
    for row, index in enumerate(indices):
        for i in range(counts[row]):
            x1, y1, x2, y2 = boxes[row][i]
            results.append(
                {
                    "image_id": records.images[index].image_id,
                    "category_id": records.category_ids[labels[row][i]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": scores[row][i],
                }
            )
    return results
