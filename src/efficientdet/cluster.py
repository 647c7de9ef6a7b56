"""Images beyond one machine: Ray runs detectors over a folder or bucket, and parquet files hold what they find.

The images are listed once, in `_images.parquet`, whose row groups are the parts of the run. The results of a part are a
file, written whole or not at all, so a run that is started again does the parts that have none. `_manifest.json` says
what the run is, and at its end what came of it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientdet.atomic_write import replacing
from efficientdet.cache import sha256_of
from efficientdet.errors import DataError, EfficientDetError, ImageError, SettingError, as_error, require, sent_error
from efficientdet.inference.hardware import core_count
from efficientdet.inference.settings import DetectorOptions, DetectorSettings, PostprocessSettings
from efficientdet.settings import Settings, changed, divided, setting
from efficientdet.text import in_json, without_password
from efficientdet.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.detections import Detections

MANIFEST, IMAGES = "_manifest.json", "_images.parquet"  # readers of a folder of parquet files ignore names like these
# File systems of pyarrow where a killed writer leaves no part of a file, with what `Run` does.
SAFE_FOR_RESULTS = ("local", "s3", "gcs", "abfs")
# Files that a worker fetches at once, and the bytes that it may hold before they are decoded.
FETCHERS, BYTES_AHEAD = 16, 2**28


@dataclass(frozen=True)
class ClusterSettings(Settings):
    """How the work is divided on a Ray cluster."""

    workers: int | None = setting(
        None, "Workers, each with a detector of its own; by default as many as the cluster has room for.", minimum=1
    )
    cpus_per_worker: int = setting(1, "Cores of each worker.", minimum=1)
    gpus_per_worker: float = setting(0.0, "GPUs of each worker; with 0.5, two share one.", minimum=0)
    part_size: int = setting(
        1000, "Images in each file of results; what a killed worker had done of one is done again.", minimum=1
    )


class ClusterOptions(DetectorOptions, total=False):
    """The fields of `ClusterSettings` and those of `DetectorOptions` as keywords, for type checkers."""

    workers: int | None
    cpus_per_worker: int
    gpus_per_worker: float
    part_size: int


def predict_on_ray(
    source: str | Path,
    out: str | Path,
    weights: str | Path = "people",
    *,
    progress: Callable[[int, int], object] = lambda done, parts: None,
    **settings: Unpack[ClusterOptions],
) -> dict[str, Any]:
    """Find objects in all images below a folder or in a bucket, on a Ray cluster, or on this machine without one.

    `out` gets `part-000000.parquet` and so on, with a row for each image: `image` (its path below the source), `width`,
    `height`, `boxes_xyxy` (lists of 4 float32, pixels of the image), `scores`, `labels`, `class_names`; of an image
    that cannot be read, only `image` and `error`. Called again after a crash, it does what is missing.

    The cluster is the one that Ray is connected to already, else that of `$RAY_ADDRESS`, else this machine.

    Args:
        source: a folder, or the URI of one that pyarrow opens: `s3://`, `gs://`, `file://`, ...
        out: a folder, or the URI of one, that every machine of the cluster can write to.
        weights: what `load` takes; a file must be at the same path on every machine.
        progress: called after each part with the number of parts that are done, and of all.
        **settings: fields of `ClusterSettings`, `DetectorSettings` and `PostprocessSettings`.

    Returns:
        The manifest: `source`, `weights`, `settings` and so on; `images` and `unreadable`, the numbers of both.

    Raises:
        SettingError: `out` holds a run of other images, weights or settings, or its storage is none of
            `SAFE_FOR_RESULTS`; a setting is unknown or out of range; or no worker finds the room that it asks for.
        ImageError: there is no image at the source, or its storage gives none of a part's images.
        DataError: results are damaged.
        WeightsError, UnknownNameError: there are no such weights.
        EfficientDetError: Ray does not start, cannot be reached, or has failed; says why.
        MissingExtraError: ray or pyarrow is not installed.
    """
    from efficientdet.weights.names import find_weights

    _prepare_ray()
    own, loading, post = divided(settings, ClusterSettings, DetectorSettings, PostprocessSettings)
    chosen, given = changed(ClusterSettings(), own), {**loading, **post}
    _ = changed(DetectorSettings(), loading), changed(PostprocessSettings(), post)  # refused before anything starts
    weights = os.path.abspath(weights) if os.path.isfile(weights) else str(weights)
    sha256 = sha256_of(find_weights(weights))
    run = Run(source, out)
    run.begin({"weights_sha256": sha256, "settings": given, "part_size": chosen.part_size}, {"weights": weights})
    if parts := run.missing():
        with _cluster(chosen) as ray:
            rows = _predict_parts(ray, parts, (run, weights, sha256, given, chosen))
            for done, _ in enumerate(rows, run.parts - len(parts) + 1):
                progress(done, run.parts)
    return run.finish()


def _prepare_ray() -> None:
    """Set what Ray reads from the environment as it is imported, and import it."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it logs advice to the authors of Ray Data as errors
    if "ray" not in sys.modules and "RAY_ADDRESS" not in os.environ:
        # A cluster of this machine listens on its networks; without a token anyone there could run programs in it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    require("ray", "ray")


@contextmanager
def _cluster(settings: ClusterSettings) -> Iterator[Any]:
    """Ray, connected; what is started here ends with the block."""
    ray = require("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" not in os.environ:
        cores = max(settings.cpus_per_worker * (settings.workers or 1), core_count())
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
    with as_error(EfficientDetError, "Ray does not start here, or is not at RAY_ADDRESS"):
        ray.init(**options)
    try:
        yield ray
    finally:
        ray.shutdown()


def _predict_parts(ray: Any, parts: list[int], work: tuple[Any, ...]) -> Iterator[Any]:
    """Have workers do some parts; gives a row for each when its results are written."""
    data, settings, resources = require("ray.data", "ray"), work[-1], ray.cluster_resources()
    cpus, gpus = settings.cpus_per_worker, settings.gpus_per_worker
    room = min(resources.get("CPU", 0) // cpus, resources.get("GPU", 0) // gpus if gpus else len(parts))
    if not room and "RAY_ADDRESS" not in os.environ:  # a cluster may grow
        has = " and ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        raise SettingError(f"no worker of {cpus} CPUs and {gpus:g} GPUs finds room: the cluster has {has}")
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised too
    rows = data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    workers = min(settings.workers or int(room) or 1, len(parts))
    done = rows.map_batches(
        _Worker, fn_constructor_args=work, batch_size=1, concurrency=workers, num_cpus=cpus, num_gpus=gpus
    )
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        if (found := sent_error(str(error))) is None:
            # The last line that follows an indented one: in a traceback the error, in Ray's own messages the reason.
            reason = (re.findall(r"^[ \t].*\n(\S.*)", str(error), re.MULTILINE) or str(error).splitlines()[:1])[-1]
            raise EfficientDetError(f"Ray failed ({reason}); call again to do the parts that are missing") from error
        raise type(found)(str(found).partition("\n\n")[0]) from error  # without what Ray says after it


class _Worker:
    """An actor: a detector of its own, and the parts that it is given."""

    def __init__(
        self, run: Run, weights: str, sha256: str, settings: Mapping[str, Any], cluster: ClusterSettings
    ) -> None:
        from efficientdet.inference.detector import load
        from efficientdet.weights.names import find_weights

        os.environ["OMP_NUM_THREADS"] = str(cluster.cpus_per_worker)
        if sha256_of(find_weights(weights)) != sha256:
            raise SettingError(f"{weights}: another file on this machine than on the one that began the run")
        self.run, self.detector = run, load(weights, **settings)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(cluster.cpus_per_worker)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for part in batch["part"].tolist():
            self.run.keep(part, self._rows(part))
        return batch

    def _rows(self, part: int) -> list[dict[str, Any]]:
        """A row for each image of a part, in their order."""
        from efficientdet.inference.prefetch import prefetch

        images, failed = self.run.images(part), dict[int, str]()
        with prefetch(self.run.fetch, images, FETCHERS, 2 * FETCHERS, lambda image: image[1], BYTES_AHEAD) as contents:

            def fetched() -> Iterator[bytes]:
                for number, content in enumerate(contents):
                    if isinstance(content, bytes):
                        yield content
                    else:
                        failed[number] = content

            found = [_row(one) for one in self.detector.try_many(fetched())]
        if len(failed) == len(images) > 1:
            source = without_password(self.run.source)
            raise ImageError(f"{source}: nothing of part {part} can be fetched ({failed[0]}); try again later")
        rest = iter(found)
        rows = [{"error": failed[number]} if number in failed else next(rest) for number in range(len(images))]
        return [{"image": name, **row} for (name, _), row in zip(images, rows, strict=True)]


def _row(found: Detections | ImageError) -> dict[str, Any]:
    if isinstance(found, ImageError):
        return {"error": str(found).partition(": ")[2]}  # without `<1234 bytes>`, its name for the image
    return {
        "width": found.image_size[1],
        "height": found.image_size[0],
        "boxes_xyxy": found.boxes_xyxy.tolist(),
        "scores": found.scores.tolist(),
        "labels": found.labels.tolist(),
        "class_names": [found.class_names[label] for label in found.labels],
    }


class Run:
    """A run's folder: what it is, which images it has, and which of its parts are done.

    Attributes:
        source: folder or URI of the images.
        out: folder or URI of the results.
        shown: `out` for messages, without a password.
        manifest: what `_manifest.json` holds, once the run has begun.
    """

    def __init__(self, source: str | Path, out: str | Path) -> None:
        self.source, self.out = (str(one) if "://" in str(one) else os.path.abspath(one) for one in (source, out))
        self.shown = without_password(self.out)
        self.manifest: dict[str, Any] = {}

    def begin(self, fixed: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """List the images and write the manifest; where there is one, go on with its images.

        Args:
            fixed: what must not change from one call to the next: `part_size`, the settings, ...
            facts: what the manifest says besides.

        Raises:
            SettingError: the folder holds another run, or results without a manifest; or its storage is not one where
                files are written whole or not at all.
            ImageError: there is no image at the source.
        """
        if (kind := _place(self.out)[0].type_name) not in SAFE_FOR_RESULTS:
            raise SettingError(
                f"{self.shown}: a killed worker would leave half a file on storage of type {kind}; choose an --out on "
                f"one of these: {', '.join(SAFE_FOR_RESULTS)}"
            )
        fixed = {"source": without_password(self.source), "version": __version__, **fixed}
        fixed = json.loads(json.dumps(fixed, default=str))  # tuples as lists, as the file has them
        try:
            with self._open(MANIFEST) as file, as_error(DataError, f"{self.shown}/{MANIFEST}: damaged"):
                self.manifest = json.loads(file.read())
                different = [name for name in fixed if self.manifest[name] != fixed[name]]
        except FileNotFoundError:
            self._list(fixed, facts)
            return
        if different:
            was, now = ({name: one[name] for name in different} for one in (self.manifest, fixed))
            raise SettingError(f"{self.shown}: begun with {was}, not {now}; go on with that, or choose another --out")

    def _list(self, fixed: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        if self._done():
            raise SettingError(f"{self.shown}: holds results without their {MANIFEST}; choose another --out")
        images = list_images(self.source)
        table = _arrow().table({"image": [name for name, _ in images], "bytes": [size for _, size in images]})
        self._write(IMAGES, _parquet(table, fixed["part_size"]))
        self.manifest = {**facts, **fixed, "images": len(images), "complete": False}
        self._write_manifest()

    @property
    def parts(self) -> int:
        """The number of parts."""
        return int(-(-self.manifest["images"] // self.manifest["part_size"]))

    def missing(self) -> list[int]:
        """The parts that have no results yet."""
        done = self._done()
        return [part for part in range(self.parts) if _file_name(part) not in done]

    def images(self, part: int) -> list[tuple[str, int]]:
        """Path below the source, and bytes, of each image of a part."""
        with self._open(IMAGES) as file:
            columns = _arrow().parquet.ParquetFile(file).read_row_group(part).to_pydict()
        return list(zip(columns["image"], columns["bytes"], strict=True))

    def fetch(self, image: tuple[str, int]) -> bytes | str:
        """The content of an image's file, or why it cannot be had."""
        files, folder = _place(self.source)
        try:
            with files.open_input_file(f"{folder}/{image[0]}") as file:
                return bytes(file.read())
        except (OSError, _arrow().ArrowException) as error:
            return str(error)

    def keep(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the results of a part."""
        arrow = _arrow()
        columns = {
            "image": arrow.string(), "width": arrow.int32(), "height": arrow.int32(),
            "boxes_xyxy": arrow.list_(arrow.list_(arrow.float32(), 4)), "scores": arrow.list_(arrow.float32()),
            "labels": arrow.list_(arrow.int64()), "class_names": arrow.list_(arrow.string()), "error": arrow.string(),
        }  # fmt: skip
        self._write(_file_name(part), _parquet(arrow.Table.from_pylist(rows, schema=arrow.schema(columns))))

    def finish(self) -> dict[str, Any]:
        """Count the results, and write the manifest anew, which is returned.

        Raises:
            DataError: a file of results is damaged, or lacks rows.
        """
        arrow, (files, folder) = _arrow(), _place(self.out)
        with as_error(DataError, f"{self.shown}: damaged results"):
            parts = [f"{folder}/{name}" for name in sorted(self._done())]
            results = arrow.dataset.dataset(parts, filesystem=files)
            rows, unreadable = results.count_rows(), results.count_rows(filter=arrow.dataset.field("error").is_valid())
        if rows != (images := self.manifest["images"]):
            raise DataError(f"{self.shown}: holds {rows} rows for {images} images")
        self.manifest |= {"complete": True, "unreadable": unreadable}
        self._write_manifest()
        return self.manifest

    def _done(self) -> set[str]:
        """The files of results that there are."""
        files, folder = _place(self.out)
        found = files.get_file_info(_arrow().fs.FileSelector(folder, allow_not_found=True))
        return {one.base_name for one in found if one.base_name.startswith("part-") and one.extension == "parquet"}

    def _open(self, name: str) -> Any:
        files, folder = _place(self.out)
        return files.open_input_file(f"{folder}/{name}")

    def _write_manifest(self) -> None:
        self._write(MANIFEST, in_json(json.dumps(self.manifest, indent=2, ensure_ascii=False)).encode())

    def _write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; an object in a bucket is so anyway."""
        files, folder = _place(self.out)
        if files.type_name == "local":
            with replacing(Path(folder, name)) as temporary:
                temporary.write_bytes(content)
        else:
            with files.open_output_stream(f"{folder}/{name}") as stream:
                stream.write(content)


def list_images(source: str) -> list[tuple[str, int]]:
    """Path below the source, and bytes, of each file with an image's suffix, in order.

    Raises:
        ImageError: there is no such folder, or no image in it.
    """
    from efficientdet.images.find import image_suffixes

    shown, (files, folder) = without_password(source), _place(source)
    with as_error(ImageError, f"{shown}: cannot be listed"):
        found = files.get_file_info(_arrow().fs.FileSelector(folder, recursive=True))
    images = [one for one in found if one.is_file and f".{one.extension.lower()}" in image_suffixes()]
    if not images:
        raise ImageError(f"{shown}: no image in this folder")
    return sorted((one.path[len(folder) :].lstrip("/"), one.size) for one in images)


@functools.cache
def _place(uri: str) -> tuple[Any, str]:
    """The file system that a path or URI is of, and the path in it."""
    with as_error(SettingError, f"{without_password(uri)}: cannot be opened"):
        files, path = _arrow().fs.FileSystem.from_uri(uri)
        return files, path.rstrip("/")


def _arrow() -> Any:
    for part in ("fs", "parquet", "dataset"):
        require(f"pyarrow.{part}", "ray")
    return require("pyarrow", "ray")


def _parquet(table: Any, rows: int | None = None) -> bytes:
    sink = _arrow().BufferOutputStream()
    _arrow().parquet.write_table(table, sink, row_group_size=rows)
    return bytes(sink.getvalue().to_pybytes())


def _file_name(part: int) -> str:
    return f"part-{part:06d}.parquet"
