"""demo: people in one image, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientdet.cli.options import Weights, app, print_table, say
from efficientdet.cli.run_results import save_annotated, spare_originals


@app.command()
def demo(
    image: Annotated[
        Path | None, typer.Argument(help="An image; by default the portrait that matplotlib ships.")
    ] = None,
    weights: Weights = "people",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the annotated image.")] = Path("demo"),
) -> None:
    """Find people in an image with the bundled detector. Works offline.

    Example: `efficientdet demo photo.jpg`
    """
    from efficientdet.images.find import output_names, sample_image
    from efficientdet.inference.detector import load

    source = image or sample_image()
    target = out / output_names([source])[0]
    spare_originals([source], [target])
    detections = load(weights).predict(source)
    save_annotated(detections, target)
    rows = [
        {
            "class": entry["class_name"],
            "score": f"{entry['score']:.2f}",
            **{side: f"{x:.0f}" for side, x in zip(("left", "top", "right", "bottom"), entry["box_xyxy"], strict=True)},
        }
        for entry in detections.to_json()["detections"]
    ]
    print_table(f"{len(detections)} found in {source.name}", rows, ("class",))
    say(f"annotated image: {target}")
