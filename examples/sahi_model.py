"""A detector of efficientdet as a `DetectionModel` of SAHI, for its slicing, its merging and its reports.

pip install sahi efficientdet
python examples/sahi_model.py people photo.jpg
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from sahi.models.base import DetectionModel
from sahi.prediction import ObjectPrediction

import efficientdet as ed


class EfficientDetModel(DetectionModel):
    """Takes what every `DetectionModel` takes; `model_path` is what `ed.load` takes, `model` a detector."""

    required_packages = ["efficientdet"]

    def load_model(self) -> None:
        """Load the detector that `model_path` names."""
        size = {} if self.image_size is None else {"image_size": self.image_size}
        self.set_model(ed.load(self.model_path or "people", device=str(self.device), **size))

    def set_model(self, model: ed.Detector, **_: Any) -> None:
        """Take a detector as it is."""
        self.model = model
        self.category_mapping = {str(label): name for label, name in enumerate(model.class_names)}

    def perform_inference(self, image: np.ndarray) -> None:
        """Predict one slice, (H, W, 3) uint8 RGB."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        """Predict slices together."""
        self._original_predictions = self.model.predict(images, score_threshold=self.confidence_threshold, tiles=None)

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        count = len(self._original_predictions)
        shifts, shapes = _for_each(shift_amount_list or [0, 0], count), _for_each(full_shape_list, count)
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=one["box_xyxy"], category_id=one["label"], category_name=one["class_name"],
                    score=one["score"], shift_amount=shift, full_shape=shape or list(detections.image_size),
                )
                for one in detections.to_json()["detections"]
                if one["box_xyxy"][0] < one["box_xyxy"][2] and one["box_xyxy"][1] < one["box_xyxy"][3]
            ]
            for detections, shift, shape in zip(self._original_predictions, shifts, shapes, strict=True)
        ]  # fmt: skip


def _for_each(values: Any, count: int) -> list[Any]:
    """A list with a pair for each image; SAHI gives one pair alone where there is one image."""
    return list(values) if values and isinstance(values[0], (list, tuple)) else [values] * count


if __name__ == "__main__":
    from sahi.predict import get_sliced_prediction

    model = EfficientDetModel(model_path=sys.argv[1], confidence_threshold=0.3)
    result = get_sliced_prediction(sys.argv[2], model, slice_height=320, slice_width=320, verbose=0)
    for found in result.object_prediction_list:
        box = [round(float(side), 1) for side in found.bbox.to_xyxy()]
        print(json.dumps({"class": found.category.name, "score": round(float(found.score.value), 3), "box_xyxy": box}))
