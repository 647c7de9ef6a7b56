"""Between detections and the COCO evaluator: results in its form, and ground truth with ids that it takes."""

from __future__ import annotations

from typing import Any

from efficientdet.data.records import Records
from efficientdet.inference.postprocess import BatchDetections


def evaluator_ids(records: Records) -> list[int]:
    """An integer id for each picture: the data set's own, or its place where ids are text."""
    ids = [record.image_id for record in records.images]
    if all(isinstance(image_id, int) for image_id in ids):
        return [int(image_id) for image_id in ids]
    return list(range(1, len(ids) + 1))


def ground_truth(records: Records) -> dict[str, Any]:
    """The records as a COCO dict whose image ids are integers."""
    coco = records.to_coco()
    ids = evaluator_ids(records)
    renamed = {record.image_id: ids[i] for i, record in enumerate(records.images)}
    for image in coco["images"]:
        image["id"] = renamed[image["id"]]
    for annotation in coco["annotations"]:
        annotation["image_id"] = renamed[annotation["image_id"]]
    return coco


def batch_results(found: BatchDetections, indices: list[int], records: Records) -> list[dict[str, Any]]:
    """COCO results of a batch.

    Args:
        found: detections in original pixels; labels are those of the records.
        indices: places of the batch's pictures in the records.
        records: the split.

    Returns:
        One dict a detection: image_id, category_id (the data set's own), bbox xywh, score.
    """
    ids = evaluator_ids(records)
    boxes, scores = found.boxes_xyxy.cpu().tolist(), found.scores.cpu().tolist()
    labels, counts = found.labels.cpu().tolist(), found.counts.cpu().tolist()
    results = []
    for row, index in enumerate(indices):
        for i in range(counts[row]):
            x1, y1, x2, y2 = boxes[row][i]
            results.append(
                {
                    "image_id": ids[index],
                    "category_id": records.category_ids[labels[row][i]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": scores[row][i],
                }
            )
    return results
