"""The table of released models, their names, and the scaling law between them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.family import (
    MODELS,
    PUBLISHED,
    PUBLISHED_AP,
    VARIANTS,
    ModelSpec,
    aspect_factors,
    compound_scaling,
    find_spec,
)
from efficientdet.weights.create import create_model


@pytest.mark.parametrize("name", MODELS)
def test_parameters_equal_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = create_model(name)
    assert sum(x.numel() for x in network.parameters()) == PUBLISHED[name][0]


def test_every_released_model_has_a_row_and_published_figures() -> None:
    names = [*(f"d{i}" for i in range(8)), "d7x", *(f"lite{i}" for i in range(4)), "lite3x", "lite4"]
    assert sorted(MODELS) == sorted(names)
    assert set(PUBLISHED) == set(PUBLISHED_AP) == set(MODELS)
    assert set(VARIANTS) == {"d0-symmetric", "d1-symmetric"}
    assert all(spec.name == name for name, spec in (MODELS | VARIANTS).items())


@pytest.mark.parametrize(
    ("name", "facts"),
    [  # backbone, size, width, depth, head depth, levels, fusion, activation, anchor scale
        ("d0", ("b0", 512, 64, 3, 3, (3, 7), "fast", "swish", 4.0)),
        ("d5", ("b5", 1280, 288, 7, 4, (3, 7), "fast", "swish", 4.0)),
        ("d6", ("b6", 1280, 384, 8, 5, (3, 7), "none", "swish", 4.0)),
        ("d7", ("b6", 1536, 384, 8, 5, (3, 7), "none", "swish", 5.0)),
        ("d7x", ("b7", 1536, 384, 8, 5, (3, 8), "none", "swish", 4.0)),
        ("lite0", ("lite0", 320, 64, 3, 3, (3, 7), "none", "relu6", 3.0)),
        ("lite3x", ("lite3", 640, 200, 6, 4, (3, 7), "none", "relu6", 3.0)),
    ],
)
def test_rows(name: str, facts: tuple[object, ...]) -> None:
    spec = MODELS[name]
    assert (
        spec.backbone, spec.image_size, spec.width, spec.depth, spec.head_depth,
        spec.levels, spec.fusion, spec.activation, spec.anchor_scale,
    ) == facts  # fmt: skip
    assert spec.anchors_per_cell == 9
    assert spec.strides == tuple(2**level for level in range(facts[5][0], facts[5][1] + 1))  # type: ignore[index]


@pytest.mark.parametrize("phi", range(5))
def test_compound_scaling_gives_the_released_models(phi: int) -> None:
    scaled = compound_scaling(phi)
    assert dataclasses.replace(scaled, name=f"d{phi}") == MODELS[f"d{phi}"]


def test_compound_scaling_keeps_its_formula_where_the_released_models_leave_it() -> None:
    scaled = compound_scaling(5)
    assert (scaled.depth, scaled.image_size) == (8, 1152)
    assert (MODELS["d5"].depth, MODELS["d5"].image_size) == (7, 1280)


def test_fractions_lie_between_their_neighbors() -> None:
    spec = compound_scaling(2.5)
    assert spec.name == "phi2.5"
    # 64 * 1.35**2.5 = 135.5; 512 + 320 = 832, to a multiple of 128; 3 + 2.5, rounded; 3 + floor(2.5 / 3)
    assert (spec.width, spec.image_size, spec.depth, spec.head_depth) == (136, 896, 6, 3)
    assert spec.backbone == "b3"


def test_the_first_arxiv_version_has_one_cell_less() -> None:
    for phi in (0, 1, 2.5, 4):
        released, first = compound_scaling(phi), compound_scaling(phi, "arxiv-v1")
        assert first.depth == released.depth - 1
        assert first.name != released.name
        assert dataclasses.replace(first, name=released.name, depth=released.depth) == released


@settings(deadline=None)
@given(st.floats(0, 12), st.floats(0, 12))
def test_more_phi_never_gives_less(one: float, other: float) -> None:
    small, large = compound_scaling(min(one, other)), compound_scaling(max(one, other))
    for field in ("image_size", "width", "depth", "head_depth"):
        assert getattr(small, field) <= getattr(large, field)
    assert small.image_size % 128 == 0 and small.width % 8 == 0
    assert small.backbone <= large.backbone <= "b7"


@pytest.mark.parametrize("phi", [-0.1, float("nan"), float("inf"), float("-inf")])
def test_impossible_phi(phi: float) -> None:
    with pytest.raises(SettingError, match=f"phi is {phi}"):
        compound_scaling(phi)


def test_unknown_depth_rule() -> None:
    with pytest.raises(UnknownNameError, match="arxiv-v2.*did you mean 'arxiv-v1'.*released"):
        compound_scaling(1, "arxiv-v2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("alias", "spec"),
    [
        ("d0", MODELS["d0"]),
        ("D7X", MODELS["d7x"]),
        ("tf_efficientdet_d0", MODELS["d0"]),
        ("tf_efficientdet_lite3x", MODELS["lite3x"]),
        ("efficientdet_lite0", MODELS["lite0"]),
        ("efficientdet-d0", MODELS["d0"]),
        ("efficientdet_d2", MODELS["d2"]),
        ("efficientdet_d0", MODELS["d0"]),
        ("tf-efficientdet-d0", MODELS["d0"]),
        ("d0-symmetric", VARIANTS["d0-symmetric"]),
        ("D1_Symmetric", VARIANTS["d1-symmetric"]),
        ("efficientdet_d1_symmetric", VARIANTS["d1-symmetric"]),
    ],
)
def test_aliases(alias: str, spec: ModelSpec) -> None:
    assert find_spec(alias) is spec


@pytest.mark.parametrize(("name", "nearest"), [("lite5", "lite4"), ("d77x", "d7x"), ("d0-symetric", "d0-symmetric")])
def test_unknown_names_list_the_nearest_and_all(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_spec(name)
    message = str(caught.value)
    assert f"unknown model '{name}'" in message and f"did you mean '{nearest}'" in message
    assert all(known in message for known in MODELS)


@pytest.mark.parametrize("spec", [*MODELS.values(), *VARIANTS.values(), compound_scaling(2.5)], ids=lambda s: s.name)
def test_a_spec_survives_json(spec: ModelSpec) -> None:
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_spec_with_wrong_fields_is_refused() -> None:
    fields = MODELS["d0"].to_dict()
    del fields["width"]
    with pytest.raises(SettingError, match=r"unknown fields \['color'\], missing fields \['width'\]"):
        ModelSpec.from_dict(fields | {"color": "red"})


def test_importing_the_family_loads_neither_torch_nor_numpy() -> None:
    program = "import sys, efficientdet.family; print(*({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_anchors_of_given_ratios_have_the_same_area(ratios: list[float]) -> None:
    for ratio, (width, height) in zip(ratios, aspect_factors(ratios), strict=True):
        assert width / height == pytest.approx(ratio)
        assert width * height == pytest.approx(1)
