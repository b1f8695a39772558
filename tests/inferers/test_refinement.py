"""How strongly is refined: what a card says, and what is asked for instead."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest

from medpair.data.files import DataError
from medpair.inferers.refinement import Refinement


def test_weights_may_say_how_they_are_refined_with() -> None:
    assert astuple(Refinement.of({})) == (10, 100, "mean")  # the paper
    said = {"sampling": {"refine_steps": 3, "grid_steps": 30, "combine": "alternate"}}

    def chosen(**asked: Any) -> tuple[Any, ...]:
        return astuple(Refinement.of(said, **asked))

    assert chosen() == (3, 30, "alternate")
    assert chosen(combine="mean") == (3, 30, "mean")
    # 5 of 30 would be more noise than who asks for 5 steps expects
    assert chosen(refine_steps=5) == (5, 100, "alternate")
    assert chosen(grid_steps=20) == (10, 20, "alternate")
    assert chosen(refine_steps=0) == (0, 100, "alternate")
    for wrong in (
        {"refine_steps": 31, "grid_steps": 30},
        {"refine_steps": True},
        {"grid_steps": 0, "refine_steps": 0},
        {"combine": "median"},
        {"evidence": 0.85},
    ):
        with pytest.raises(DataError, match=r"^model\.json: sampling: expected arguments of Ref"):
            Refinement.of({"sampling": wrong})
