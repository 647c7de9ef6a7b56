"""docs/troubleshooting.md has a line for each known complaint, and each line has tests that exist.

E: complaints about other implementations of EfficientDet; G: about detection packages in general; F: faults that were
measured in effdet 0.4.1.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from efficientdet.evaluation.evaluate import evaluate
from efficientdet.inference.detector import load
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun
from efficientdet.weights.create import create_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HERE = "docs/test_troubleshooting.py"
# Complaint -> the tests that hold what its line says, below tests/.
TESTS = {
    "E1": [
        "training/test_config.py::test_the_learning_rate_comes_from_the_images_of_a_step",
        "training/test_run.py::test_a_loss_that_is_not_finite_is_skipped",
    ],
    "E2": [
        "training/test_run.py::test_a_gradient_that_is_not_finite_is_dropped",
        "training/test_losses.py::test_half_precision_outputs_are_summed_in_float32",
        "weights/test_checkpoint.py::test_weights_that_are_no_numbers_are_refused",
    ],
    "E3": [
        "data/test_coco.py::test_gaps_and_zero_based_ids_become_contiguous_labels",
        "data/test_coco.py::test_a_category_without_boxes_is_kept",
        f"{HERE}::test_the_last_class_is_found",
    ],
    "E4": [
        "end_to_end/test_overfit.py::test_eight_pictures_are_learnt_by_heart",
        "evaluation/test_evaluate.py::test_the_threshold_is_low_unless_given_and_never_that_for_showing",
    ],
    "E5": [
        "data/test_voc.py::test_cells_give_the_boxes_of_their_json",
        "data/test_voc.py::test_coordinates_become_zero_based_with_exclusive_ends",
    ],
    "E6": [
        "weights/test_foreign.py::test_boxes_turn_from_yx_to_xy_and_nothing_else_does",
        "inference/test_detector.py::test_boxes_come_back_in_pixels_of_the_picture",
    ],
    "E7": ["data/test_coco.py::test_labels_are_contiguous_and_lead_back"],
    "E8": ["data/test_builder.py::test_areas_that_are_none_come_from_the_box"],
    "E9": [
        "data/test_dataset.py::test_images_of_crowds_alone_are_left_out_and_negatives_are_in",
        "training/test_losses.py::test_an_image_without_boxes_in_a_batch",
        "training/test_run.py::test_only_negatives_train_if_asked_to",
    ],
    "E10": [
        "network/test_efficientdet.py::test_any_size_agrees_with_the_anchors",
        "inference/engines/test_engine.py::test_rectangular_inputs_are_the_smallest_multiples_that_hold_the_picture",
    ],
    "E11": ["network/test_efficientdet.py::test_earlier_sizes_leave_no_trace"],
    "E12": ["exporting/test_onnx_file.py::test_end_to_end_is_the_detector"],
    "E13": ["exporting/test_examples.py::test_torch_export"],
    "E14": [
        "inference/test_candidates.py::test_they_are_the_best_pairs",
        "inference/test_postprocess.py::test_a_batch_is_its_pictures_one_by_one",
    ],
    "E15": [
        "training/test_run.py::test_two_batches_of_four_move_the_weights_as_one_of_eight",
        "training/test_gradient_checkpointing.py::test_the_same_gradients_and_statistics",
    ],
    "E16": [
        "training/test_processes.py::test_two_devices_follow_the_loss_curve_of_one",
        "training/test_processes.py::test_a_process_that_dies_does_not_leave_the_other_waiting",
        "training/test_processes.py::test_the_error_of_either_is_raised",
    ],
    "E17": [f"{HERE}::test_training_and_evaluate_agree_on_the_ap"],
    "E18": [
        "weights/test_foreign_formats.py::test_missing_biases_are_zero",
        "weights/test_foreign_formats.py::test_every_mismatch_is_listed_and_nothing_changes",
    ],
    "E19": [
        "test_public_face.py::test_importing_the_package_imports_nothing_heavy",
        "network/test_backbones.py::test_without_timm_the_message_says_how_to_get_it",
    ],
    "E20": ["training/test_run.py::test_weights_with_other_classes_lose_their_last_layer"],
    "E21": [
        "training/test_run.py::test_boxes_too_small_for_the_input_are_counted",
        "training/test_assignment.py::test_a_tiny_box_is_forced_on_an_anchor_around_it",
    ],
    "E22": ["training/test_assignment.py::test_many_boxes_stay_finite"],
    "E23": [
        "data/test_augment.py::test_boxes_stay_inside_and_dropped_ones_are_flagged",
        "data/test_augment.py::test_no_boxes",
    ],
    "E24": ["exporting/test_quantize.py::test_over_the_bound_nothing_is_written"],
    "E25": ["evaluation/test_coco_ap.py::test_pycocotools_agrees_on_small_cases"],
    "E26": [
        "benchmarks/test_run.py::test_a_section_whose_sides_differ_is_refused_before_it_is_measured",
        "benchmarks/test_report.py::test_a_section_names_the_processor_beside_each_table_and_gives_ratios_round_by_round",
    ],
    "E27": [
        "weights/test_checkpoint.py::test_as_many_classes_as_names",
        "evaluation/test_evaluate.py::test_a_class_that_the_detector_does_not_know_is_an_error",
    ],
    "E28": [
        "data/test_read_split.py::test_the_error_says_where_was_sought",
        "data/test_read_split.py::test_every_coco_layout_is_found",
    ],
    "G1": [f"{HERE}::test_no_license_asks_for_more_than_ours"],
    "G2": [f"{HERE}::test_dependencies_have_lower_bounds_only"],
    "G3": [f"{HERE}::test_nothing_is_compiled"],
    "G4": [f"{HERE}::test_windows_is_tested"],
    "G5": ["data/test_coco.py::test_gaps_and_zero_based_ids_become_contiguous_labels"],
    "G6": ["exporting/test_onnx_file.py::test_the_file_says_what_it_is"],
    "G7": ["images/test_letterbox.py::test_the_letterbox_fits_and_fills_one_side"],
    "G8": ["inference/engines/test_exported.py::test_a_fixed_size_is_fixed"],
    "G9": ["test_detections.py::test_to_coco"],
    "G10": ["exporting/test_parity.py::test_one_wrong_weight_is_found"],
    "G11": [
        "exporting/test_settings.py::test_what_a_format_cannot_be_is_refused",
        "exporting/test_examples.py::test_tflite",
    ],
    "G12": ["end_to_end/test_cli_export.py::test_export_then_check_then_refuse"],
    "G13": ["training/test_processes.py::test_two_devices_evaluate_to_the_same_ap"],
    "F1": ["inference/test_postprocess.py::test_classes_never_affect_each_other"],
    "F2": ["inference/test_candidates.py::test_large_levels_are_compared_in_pieces"],
    "F3": ["network/test_efficientdet.py::test_any_size_agrees_with_the_anchors"],
    "F4": [f"{HERE}::test_one_class_at_128_pixels"],
    "F5": ["training/test_assignment.py::test_of_tied_anchors_the_first_is_forced"],
    "F6": ["training/test_losses.py::test_boxes_without_zero_targets_lose_the_same_either_way"],
    "F7": ["test_public_face.py::test_importing_the_package_imports_nothing_heavy"],
}


def test_every_complaint_has_a_line_and_every_line_a_complaint() -> None:
    known = [f"E{n}" for n in range(1, 29)] + [f"G{n}" for n in range(1, 14)] + [f"F{n}" for n in range(1, 8)]
    assert sorted(TESTS) == sorted(known)
    assert sorted(re.findall(r"<!-- ([EGF]\d+) -->", PAGE)) == sorted(known)
    lines = re.findall(r"^- \*\*.*?(?=^- |^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert all("<!-- " in line for line in lines)


@functools.cache
def _tests_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("complaint", TESTS)
def test_the_tests_of_a_complaint_exist(complaint: str) -> None:
    assert TESTS[complaint]
    for test in TESTS[complaint]:
        path, name = test.split("::")
        assert name.startswith("test_")
        assert name in _tests_of(ROOT / "tests" / path), test


@pytest.mark.parametrize("anchor", re.findall(r"\]\((\w+\.md)#([\w-]+)\)", PAGE))
def test_links_lead_to_a_heading(anchor: tuple[str, str]) -> None:
    page, wanted = anchor
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert wanted in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


# What no other file tests


@pytest.fixture(scope="module")
def learned(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingRun, Path]:
    """A run that finds something of both classes, and its dataset."""
    folder = tmp_path_factory.mktemp("learned")
    data = shapes.write_shapes(folder / "set", {"train": 16, "val": 8})
    settings = {
        "epochs": 20, "batch_size": 8, "learning_rate": 4e-3, "backbone_rate": 1.0, "ema_decay": 0.5,
        "evaluate_every": 20,
    }  # fmt: skip
    return train(shapes.TINY, data, out=folder / "run", **{**shapes.SETTINGS, **settings}), data


def test_the_last_class_is_found(learned: tuple[TrainingRun, Path]) -> None:
    metrics = learned[0].metrics
    assert metrics is not None
    assert list(metrics.per_class) == ["disc", "square"]
    assert (metrics.per_class_ap50["square"] or 0.0) > 0


def test_training_and_evaluate_agree_on_the_ap(learned: tuple[TrainingRun, Path]) -> None:
    run, data = learned
    again = evaluate(run.last, data)
    assert run.metrics is not None
    assert run.metrics.ap > 0
    assert again.ap == pytest.approx(run.metrics.ap, rel=0.01)
    assert again.per_class == pytest.approx(run.metrics.per_class, rel=0.01)


def test_no_license_asks_for_more_than_ours() -> None:
    """Of what is installed here of all that the package can ask for."""
    assert PROJECT["license"] == "Apache-2.0"
    wanted = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[\[<>=!;, ]", requirement)[0] for requirement in wanted}
    seen = 0
    for name in names - {"efficientdet"}:
        try:
            facts = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        stated = " ".join([facts.get("License-Expression") or "", (facts.get("License") or "")[:200]])
        stated += " ".join(value for value in facts.get_all("Classifier") or [] if value.startswith("License"))
        assert not re.search(r"\bA?GPL|GNU (Affero )?General", stated), f"{name}: {stated}"
        seen += 1
    assert seen >= 8


def test_dependencies_have_lower_bounds_only() -> None:
    for requirement in PROJECT["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement), requirement


def test_nothing_is_compiled() -> None:
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > 100
    assert not [path for path in files if path.suffix in (".so", ".pyd", ".c", ".cpp", ".cu", ".pyx")]


def test_windows_is_tested() -> None:
    assert "windows-latest" in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")


def test_one_class_at_128_pixels(tmp_path: Path) -> None:
    """3,069 anchors of one class: fewer candidates than are kept before NMS."""
    network, detector = create_model("lite0", 1), load("people", device="cpu", image_size=128)
    assert len(network.anchors((128, 128))) == 3069 < detector.postprocess.max_candidates
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    found = detector.predict(image, score_threshold=0.0)
    assert len(found) == detector.postprocess.max_detections
