"""serve: detectors behind an HTTP port, with a web page."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from efficientdet.cli.options import app, flush_output, say, takes_settings
from efficientdet.errors import require
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings
from efficientdet.serving.settings import ServeSettings
from efficientdet.settings import divided


@app.command()
@takes_settings(ServeSettings, PostprocessSettings, DetectorSettings, stored=PostprocessSettings)
def serve(
    settings: dict[str, Any],
    weights: Annotated[
        list[str],
        typer.Option(
            "--weights",
            "-w",
            help="Bundled model, checkpoint, exported file, released model, or hf://owner/repo; NAME=WEIGHTS names it. "
            "Can be repeated: requests choose by name, and get the first by default.",
        ),
    ] = ["people"],  # noqa: B006  # typer reads it, and nobody changes it
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="EFFICIENTDET_API_KEY",
            help="Key that requests must send. Prefer the variable: others on this machine can see options.",
        ),
    ] = None,
) -> None:
    """Serve detectors over HTTP, with a web page at `/`.

    Logs are lines of JSON on standard error. Ctrl-C and SIGTERM end the server once it has answered what it accepted.

    Example: `efficientdet serve --weights people --port 8000`
    """
    for module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        require(module, "serve")
    from efficientdet.inference.detector import load
    from efficientdet.serving.run import name_models, run_server

    own, post, detector = divided(settings, ServeSettings, PostprocessSettings, DetectorSettings)
    named = name_models(weights)
    detectors = {name: load(source, **post, **detector) for name, source in named.items()}

    def tell(address: str) -> None:
        say(f"serving {', '.join(detectors)} at {address} (Ctrl-C stops it)")
        flush_output()

    run_server(detectors, ServeSettings(**own), api_key, tell)
