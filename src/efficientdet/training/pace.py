"""Where in its schedule a run is: by its steps, and differently once the number of its steps has been changed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Stretch(NamedTuple):
    """Steps from `step` on, each of which moves the run by `speed` steps of its schedule, from `position` on."""

    step: int
    position: float
    speed: float


class Pace:
    """Maps a run's steps to steps of the schedule that it was started with.

    A schedule of 100 steps whose run has to end after 80 is walked faster from where that was decided: the learning
    rate keeps its value at that step and still reaches the schedule's end. Until a run is changed, `position(step)` is
    `step`, to the bit.
    """

    def __init__(self) -> None:
        self.stretches = [Stretch(0, 0.0, 1.0)]

    @property
    def is_changed(self) -> bool:
        """Whether the run has another length than it was started with."""
        return len(self.stretches) > 1

    def position(self, step: int) -> float:
        """The step of the schedule at a step of the run."""
        now = next(one for one in reversed(self.stretches) if one.step <= step)
        return now.position + (step - now.step) * now.speed

    def end(self, total: int) -> int:
        """The run's last step, of a schedule of `total` steps."""
        now = self.stretches[-1]
        return now.step + math.ceil((total - now.position) / now.speed - 1e-6)

    def change(self, step: int, steps_left: int, total: int) -> None:
        """Reach the end of a schedule of `total` steps in `steps_left` steps from `step` on."""
        position = self.position(step)
        if steps_left < 1 or position >= total:
            self.stretches.append(Stretch(step, float(total), 1.0))
        else:
            self.stretches.append(Stretch(step, position, (total - position) / steps_left))

    def state_dict(self) -> dict[str, Any]:
        """Plain types, for the state of a run."""
        return {"stretches": [list(stretch) for stretch in self.stretches]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.stretches = [Stretch(int(step), position, speed) for step, position, speed in state["stretches"]]
