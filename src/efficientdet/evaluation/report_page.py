"""The report of an evaluation as one HTML page: the run, numbers, mistakes, a gallery of images, curves, confusion."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from efficientdet import html_page as html
from efficientdet.data.records import Records
from efficientdet.detections import Detections
from efficientdet.errors import ImageError
from efficientdet.evaluation.coco_ap import number
from efficientdet.evaluation.label_errors import label_findings
from efficientdet.evaluation.matching import NOTHING, Matches, sort_key
from efficientdet.evaluation.mistakes import KINDS, find_mistakes, is_kept, mistakes_by_image, wrong_and_missed
from efficientdet.evaluation.numbers import NUMBERS, Table, tables, text_of
from efficientdet.images.draw import thumbnail
from efficientdet.images.read import read
from efficientdet.inference.settings import EVALUATION_SCORE_THRESHOLD
from efficientdet.text import printable

# Figures of each kind.
MOST_OF_A_KIND = 8
LABEL_ERROR, WORST = "likely label error", "worst image"
# The command that explains a detection: of an image file, by its number.
Explain: TypeAlias = Callable[[Path, int], str]


# Curves in a chart.
MOST_CURVES = 8
# What is drawn of a training, by the names in its log.
RUN_CHARTS = {
    "Loss": ("train/loss", "train/class_loss", "train/box_loss", "val/loss"),
    "Average precision": ("val/ap", "val/ap50", "val/ap75"),
}
# Numbers on top of the page.
HEADLINE = ("ap", "ap50", "precision", "recall", "f1", "images_per_second")
# Columns of tables that get a bar as long as the number.
BARS = ("AP", "AP50", "AP50 to gain")
ADVICE = (
    "All detections down to a score of 0.001 are counted. Work on the largest gain first: missed objects want a larger "
    "image size or more examples, poor boxes better annotations or longer training, wrong classes more examples of the "
    "two."
)


def explain_command(weights: str | Path, options: Sequence[str] = ()) -> Explain:
    """The command that shows level, anchor and fused edges of a detection of an evaluation.

    Args:
        weights: what was evaluated.
        options: of the command line, with which it was.
    """
    fixed = [*options, "--score-threshold", str(EVALUATION_SCORE_THRESHOLD)]
    return lambda path, number: shlex.join(
        ["efficientdet", "explain", str(weights), str(path), "--detection", str(number), *fixed]
    )


class _Entry(NamedTuple):
    """A figure to be: what is wrong where.

    Attributes:
        kind: of what is wrong.
        image: index of the image.
        classes: names of the classes that it is about.
        text: what is wrong.
        boxes: to mark, beside the annotated ones.
        number: of the detection that it is about, in its image; None for none.
    """

    kind: str
    image: int
    classes: tuple[str, ...]
    text: str
    boxes: list[html.MarkedBox]
    number: int | None = None


class Gallery(NamedTuple):
    """What a gallery shows.

    Attributes:
        matches: of an evaluation.
        records: its dataset; images that cannot be read are left out, and counted.
        explain: the command that explains a detection; None for none.
    """

    matches: Matches
    records: Records
    explain: Explain | None = None

    def section(self, report: Mapping[str, Any]) -> html.Html:
        """The figures, filterable by kind and class.

        Args:
            report: of `summarize`, of the same evaluation.
        """
        thresholds = np.array(report["confusion"]["score_thresholds"], np.float64)
        paths = {record.image_id: record.path for record in self.records.images}
        figures, unreadable = [], set()
        for entry in (*self._mistakes(thresholds), *self._missed(), *self._label_errors(), *self._worst(thresholds)):
            path = paths[self.matches.image_ids[entry.image]]
            try:
                figures.append(self._figure(entry, path))
            except ImageError:
                unreadable.add(path)
        left_out = [html.paragraph(f"Images that cannot be read: {len(unreadable)}.")] if unreadable else []
        if not figures:
            return html.join([html.paragraph("There are no mistakes at the score threshold."), *left_out])
        intro = html.paragraph(
            "The most confident mistakes of each kind, the largest missed objects, the likeliest label errors and the "
            "images with most mistakes. Annotated boxes are green, what is wrong is pink; in the worst images missed "
            "objects are dashed."
        )
        return html.join([intro, *left_out, html.gallery(figures, "mistakes")])

    def _figure(self, entry: _Entry, path: Path) -> html.Figure:
        objects, names = self.matches.objects, self.matches.class_names
        own = np.flatnonzero(objects.images == entry.image)
        truth = [html.MarkedBox(_corners(objects.boxes_xywh[i]), "truth", names[objects.labels[i]]) for i in own]
        jpeg, window = thumbnail(read(path), [box.xyxy for box in entry.boxes] if entry.kind != WORST else [])
        caption = f"{entry.text}; image {printable(self.matches.image_ids[entry.image], 80)}"
        more = html.Html("")
        if self.explain is not None and entry.number is not None:
            more = html.folded("explain it", html.code(self.explain(path, entry.number)))
        kinds = (("kind", entry.kind), *(("class", printable(name, 80)) for name in entry.classes))
        return html.Figure(jpeg, window, [*truth, *entry.boxes], caption, caption, kinds, more)

    def _mistakes(self, thresholds: NDArray[np.float64]) -> Iterator[_Entry]:
        """Of each kind the most confident wrong detections."""
        matches, mistakes, names = self.matches, find_mistakes(self.matches), self.matches.class_names
        detections, kept = matches.detections, is_kept(matches, thresholds)
        for index, kind in enumerate(list(KINDS)[:-1]):
            for row in np.flatnonzero((mistakes.kinds == index) & kept)[:MOST_OF_A_KIND]:
                name, about = names[detections.labels[row]], mistakes.objects[row]
                text = f"{kind}: {printable(name, 80)} {detections.scores[row]:.2f}"
                classes = [name]
                if about != NOTHING:
                    classes.append(names[matches.objects.labels[about]])
                    text += f", annotated as {printable(classes[-1], 80)}"
                box = html.MarkedBox(_corners(detections.boxes_xywh[row]), title=text)
                image, number = int(detections.images[row]), int(detections.numbers[row])
                yield _Entry(kind, image, tuple(dict.fromkeys(classes)), text, [box], number)

    def _missed(self) -> Iterator[_Entry]:
        """The largest objects that nothing found."""
        objects = self.matches.objects
        missed = np.flatnonzero(find_mistakes(self.matches).is_missed)
        for row in missed[np.argsort(-objects.areas[missed], kind="stable")][:MOST_OF_A_KIND]:
            name = self.matches.class_names[objects.labels[row]]
            box = html.MarkedBox(_corners(objects.boxes_xywh[row]), title="missed")
            yield _Entry("missed", int(objects.images[row]), (name,), f"missed: {printable(name, 80)}", [box])

    def _label_errors(self) -> Iterator[_Entry]:
        """Where the detector is surest that the annotations are wrong."""
        matches, records = self.matches, self.records
        detections = matches.detections
        # The records' labels of ours, which are in the order of the category ids.
        labels = np.array(sorted(range(len(records.category_ids)), key=lambda k: sort_key(records.category_ids[k])))
        by_image = np.argsort(detections.images, kind="stable")
        bounds = np.searchsorted(detections.images[by_image], np.arange(len(matches.image_ids) + 1))
        places = {image_id: number for number, image_id in enumerate(matches.image_ids)}

        def rows_of(image_id: Any) -> NDArray[np.int64]:
            return by_image[bounds[places[image_id]] : bounds[places[image_id] + 1]]

        def found(rows: NDArray[np.int64], image_size: tuple[int, int]) -> Detections:
            boxes = detections.boxes_xywh[rows].copy()
            boxes[:, 2:] += boxes[:, :2]
            scores = detections.scores[rows].clip(0, 1)
            return Detections(boxes, scores, labels[detections.labels[rows]], records.class_names, image_size)  # type: ignore[arg-type]

        answers = (found(rows_of(record.image_id), record.image_size) for record in records.images)
        findings = sorted(label_findings(records, "", answers), key=lambda finding: -finding.weight)
        for finding in findings[:MOST_OF_A_KIND]:
            rows = rows_of(finding.image_id)
            boxes = [html.MarkedBox(box, title=finding.rule.title) for box in finding.boxes_xyxy]
            record = next(one for one in records.images if one.image_id == finding.image_id)
            number = None
            if finding.annotation_ids:
                name = records.class_names[record.labels[record.annotation_ids.index(finding.annotation_ids[0])]]
            else:  # what the detector sees where nothing is annotated
                places_of_boxes = detections.boxes_xywh[rows, :2] - np.array(finding.boxes_xyxy[0][:2])
                row = rows[np.abs(places_of_boxes).sum(1).argmin()]
                name, number = matches.class_names[detections.labels[row]], int(detections.numbers[row])
            text = f"{finding.rule.title}: {printable(finding.what, 200)}"
            yield _Entry(LABEL_ERROR, places[finding.image_id], (name,), text, boxes, number)

    def _worst(self, thresholds: NDArray[np.float64]) -> Iterator[_Entry]:
        """The images with most mistakes."""
        matches, names = self.matches, self.matches.class_names
        counts = mistakes_by_image(matches, thresholds)
        is_wrong, is_missed = wrong_and_missed(matches, thresholds)
        for image in np.argsort(-counts, kind="stable")[:MOST_OF_A_KIND]:
            if not counts[image]:
                return
            wrong = matches.detections[is_wrong & (matches.detections.images == image)]
            missed = matches.objects[is_missed & (matches.objects.images == image)]
            text = f"worst image: {len(wrong)} wrong detections, {len(missed)} missed objects"
            marked = [
                html.MarkedBox(_corners(box), tone, f"{what}: {names[label]}")
                for boxes, tone, what in ((wrong, "hit", "wrong"), (missed, "found", "missed"))
                for box, label in zip(boxes.boxes_xywh, boxes.labels, strict=True)
            ]
            labels = np.unique(np.concatenate([wrong.labels, missed.labels]))
            yield _Entry(WORST, int(image), tuple(names[label] for label in labels), text, marked)


def _corners(box_xywh: NDArray[np.float64]) -> tuple[float, float, float, float]:
    left, top, width, height = (float(value) for value in box_xywh)
    return left, top, left + width, top + height


def write_page(
    title: str,
    report: dict[str, Any] | None,
    gallery: Gallery | None,
    history: Sequence[Mapping[str, float]],
) -> str:
    """The page.

    Args:
        title: its heading.
        report: of `summarize`; None for a training without a validation split.
        gallery: of its images; None without any.
        history: what a training measured, by epoch; empty for none.
    """
    sections = [html.Section("run", "The run", _run(history))] if history else []
    if report is None:
        note = html.paragraph("There was no validation split, so nothing was evaluated.")
        return html.page(title, [*sections, html.Section("numbers", "Numbers", note)])
    parts = {table.anchor: html.Section(table.anchor, table.title, _table(table)) for table in tables(report)}
    sections += [parts["numbers"], parts["classes"], parts["mistakes"]]
    if gallery is not None:
        sections.append(html.Section("gallery", "Images to look at", gallery.section(report)))
    sections += [
        html.Section("curves", "Curves", _curves(report)),
        html.Section("confusion", "What was taken for what", _confusion(report)),
        html.Section("definitions", "How the rest is defined", _definitions(report)),
    ]
    facts: dict[str, object] = {}
    for name in HEADLINE:
        one = report["numbers"][name]
        if one["value"] is None:
            continue
        between = [html.element("small", " to ".join(text_of(name, end) for end in one["interval"] or ()))]
        facts[NUMBERS[name].label] = html.join([text_of(name, one["value"]), *(between if one["interval"] else [])])
    return html.page(title, sections, "Below a number: its 95 % interval over images.", html.tiles(facts))


def _table(table: Table) -> html.Html:
    columns = [name for name in BARS if table.rows and name in table.rows[0]]
    # Average precision has a scale of its own; gains are compared with the largest.
    most = {name: max(_share(row[name]) for row in table.rows) if "gain" in name else 1.0 for name in columns}
    rows = [
        {
            name: html.bar(_share(cell) / (most[name] or 1.0), cell) if name in most else cell
            for name, cell in row.items()
        }
        for row in table.rows
    ]
    notes = [html.paragraph(table.note)] if table.note else []
    notes += [html.paragraph(ADVICE, class_="advice")] if table.anchor == "mistakes" else []
    return html.join([html.table(rows, table.text), *notes])


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # n.a.
        return 0.0


def _run(history: Sequence[Mapping[str, float]]) -> html.Html:
    """Charts of a training: losses and average precisions over its epochs."""
    last = 5.0 * math.ceil(max(row["epoch"] for row in history) / 5)  # the axis has five parts
    charts = []
    for heading, names in RUN_CHARTS.items():
        points = {name: [(row["epoch"], row[name]) for row in history if name in row] for name in names}
        lines = [html.Line(name, places, marks=True) for name, places in points.items() if places]
        if lines:
            top = _round_up(max(y for line in lines for _, y in line.points)) if heading == "Loss" else 1.0
            ends = ", ".join(f"{line.name} {line.points[-1][1]:.3g}" for line in lines)
            told = f"{heading} by epoch; at the end {ends}."
            drawing = html.chart(lines, "epoch", heading, told, (0.0, last), (0.0, top))
            charts.append(html.element("div", html.element("h3", heading), drawing))
    return html.element("div", *charts, class_="charts") if charts else html.paragraph("The run kept no log.")


def _round_up(value: float) -> float:
    """The next number with one digit."""
    unit = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return max(1, math.ceil(value / unit)) * unit


def _curves(report: Mapping[str, Any]) -> html.Html:
    rows = [row for row in report["classes"] if row["objects"] and row["curve"]["scores"]]
    rows = sorted(rows, key=lambda row: -row["objects"])[:MOST_CURVES]
    precision, f1 = [], []
    for row in rows:
        name, curve = printable(row["name"], 60), row["curve"]
        pairs = list(zip(curve["recall"], curve["precision"], strict=True))
        precision.append(html.Line(name, pairs))
        harmonic = [2 * r * p / (r + p) if r + p else 0.0 for r, p in pairs]
        f1.append(html.Line(name, list(zip(curve["scores"], harmonic, strict=True))))
    bins = zip(report["calibration"]["mean_scores"], report["calibration"]["precisions"], strict=True)
    known = [(x, y) for x, y in bins if x is not None and y is not None]
    reliability = [html.Line("measured", known, marks=True), html.Line("score = precision", [(0, 0), (1, 1)])]
    error = number(report["numbers"]["calibration_error"]["value"])
    charts = [
        ("Precision over recall at IoU 0.50", html.chart(precision, "recall", "precision", _told("Precision", rows))),
        ("F1 over the score threshold", html.chart(f1, "score threshold", "F1", _told("F1", rows))),
        (
            f"Calibration: expected error {error}",
            html.chart(reliability, "mean score", "share that is right", "Precision of detections by score."),
        ),
    ]
    parts = [html.element("div", html.element("h3", heading), drawing) for heading, drawing in charts]
    more = sum(bool(row["objects"]) for row in report["classes"]) - len(rows)
    note = (
        [html.paragraph(f"The {len(rows)} classes with most boxes; {more} more are in the JSON.")] if more > 0 else []
    )
    return html.join([html.element("div", *parts, class_="charts"), *note])


def _told(what: str, rows: list[dict[str, Any]]) -> str:
    aps = ", ".join(f"{printable(row['name'], 60)} AP50 {number(row['ap50'])}" for row in rows)
    return f"{what} by class: {aps}."


def _confusion(report: Mapping[str, Any]) -> html.Html:
    names = [printable(name, 40) for name in report["confusion"]["names"]]
    rows: list[dict[str, object]] = []
    for name, counts in zip(names, report["confusion"]["counts"], strict=True):
        total = sum(counts) or 1
        taken = sorted(enumerate(counts), key=lambda pair: -pair[1])
        shown = ", ".join(f"{names[column]} {count} ({count / total:.0%})" for column, count in taken if count)
        rows.append({"annotated as": name, "boxes": sum(counts), "detected as": shown or "-"})
    intro = html.paragraph(
        "At the score threshold and IoU 0.50. Objects detected as background were missed; what was detected on "
        "background is false."
    )
    return html.join([intro, html.table(rows, ("annotated as", "detected as"))])


def _definitions(report: Mapping[str, Any]) -> html.Html:
    items = [html.element("li", html.element("b", name), f": {text}") for name, text in report["definitions"].items()]
    return html.element("ul", *items)
