"""A page that finds objects in an image, for Hugging Face Spaces; `MODEL` names the detector."""

from __future__ import annotations

import os

import gradio as gr
from PIL import Image

import efficientdet as ed

detector = ed.load(os.environ.get("MODEL", "people"))


def detect(image: Image.Image, score_threshold: float) -> tuple[Image.Image, list[list[str]]]:
    """The image with boxes, and a row for each."""
    detections = detector.predict(image, score_threshold=score_threshold)
    rows = [
        [detections.class_names[label], f"{score:.2f}", " ".join(f"{edge:.0f}" for edge in box)]
        for label, score, box in zip(detections.labels, detections.scores, detections.boxes_xyxy, strict=True)
    ]
    return detections.draw(), rows


page = gr.Interface(
    detect,
    [gr.Image(type="pil", label="image"), gr.Slider(0.05, 1, 0.3, label="score threshold")],
    [gr.Image(label="detections"), gr.Dataframe(headers=["class", "score", "left, top, right, bottom"])],
    title="EfficientDet",
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
