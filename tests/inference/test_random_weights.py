from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientdet.errors import UnknownNameError
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import read
from efficientdet.inference.benchmark import sample_jpeg
from efficientdet.inference.detector import Detector
from efficientdet.inference.random_weights import PAIRS_ABOVE, random_model


def test_they_score_like_trained_ones_and_are_always_the_same() -> None:
    image = sample_jpeg()
    model, info = random_model("lite0", 256, image)
    pixels = torch.from_numpy(letterbox(read(image), (256, 256), info.preprocessing)[0])[None]
    with torch.no_grad():
        scores = torch.cat(model(pixels)[0], 1).sigmoid()
    for threshold, count in PAIRS_ABOVE.items():
        assert int((scores > threshold).sum()) == pytest.approx(count, rel=0.05)
    again = random_model("lite0", 256, image)[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert len(Detector(model, info, backend="eager", score_threshold=0.05).predict(image)) > 5


def test_torchs_random_numbers_go_on_as_before() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    random_model("lite0", 64, np.zeros((8, 8, 3), np.uint8))
    assert torch.equal(torch.rand(2), expected)


def test_the_image_size_is_the_models_own_by_default() -> None:
    assert random_model("lite0", None, sample_jpeg())[1].spec.image_size == 320
    with pytest.raises(UnknownNameError, match="d99"):
        random_model("d99", None, sample_jpeg())
