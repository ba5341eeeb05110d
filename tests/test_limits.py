"""Which limit holds when a preset, a resumed run and the command line give several."""

from dataclasses import replace

import pytest

from vqvae2.optim import TrainingConfig
from vqvae2.stages.common import limited

MINUTES = TrainingConfig(max_minutes=25, evaluations=12)


@pytest.mark.parametrize(
    ("changed", "evaluations", "expected"),
    [
        ({}, 12, MINUTES),
        ({"max_steps": 30}, 12, replace(MINUTES, max_minutes=None, evaluations=2)),
        ({"max_steps": 300}, 12, replace(MINUTES, max_minutes=None, evaluations=6)),
        ({"max_steps": 10_000}, 12, replace(MINUTES, max_minutes=None)),
        ({"max_steps": 30}, None, replace(MINUTES, max_minutes=None)),
        ({"max_minutes": 5}, 12, MINUTES),
    ],
)
def test_a_typed_limit_replaces_one_of_the_other_kind(changed, evaluations, expected):
    assert limited(MINUTES, changed, evaluations) == expected


def test_minutes_replace_steps():
    steps = TrainingConfig(max_steps=500)
    assert limited(steps, {"max_minutes": 5}, 20).max_steps is None
