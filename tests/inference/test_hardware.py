from __future__ import annotations

import dataclasses
import json

import torch

from efficientdet.inference.hardware import Hardware


def test_it_says_when_the_machine_was_busy() -> None:
    hardware = Hardware.read()
    idle = dataclasses.replace(hardware, load=0.0)
    busy = dataclasses.replace(hardware, load=hardware.cores * 1.0, cpu="Abacus", flags=("avx2", "avx512_vnni"))
    assert not idle.was_busy and "busy" not in str(idle)
    assert busy.was_busy and "the machine was busy" in str(busy) and "Abacus (avx2, avx512_vnni)" in str(busy)
    plain = json.loads(json.dumps(hardware.to_dict()))
    assert plain["versions"]["torch"] == torch.__version__
    assert plain["cores"] >= 1


def test_a_gpu_is_named_only_where_it_is_measured() -> None:
    assert Hardware.read().gpu is None
    assert (Hardware.read("auto").gpu is not None) == torch.cuda.is_available()
