"""What the main process refuses, all refuse: nobody waits for one that has ended."""

from __future__ import annotations

from typing import Any

import pytest

from medpair.data.files import DataError
from medpair.engines import distributed


@pytest.mark.parametrize("error", [DataError("out: no"), PermissionError(13, "denied"), KeyError()])
def test_whatever_the_main_process_raises_reaches_all(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    told: list[Any] = []

    def gathered(value: Any) -> list[Any]:
        told.append(value)
        return [told[0]]

    def act() -> None:
        raise error

    monkeypatch.setattr(distributed, "gathered", gathered)
    with pytest.raises(type(error)) as caught:
        distributed.main_rank_first(act)
    assert caught.value is error
    monkeypatch.setattr(distributed, "is_main_rank", lambda: False)
    with pytest.raises(DataError) as other:
        distributed.main_rank_first(act)
    assert str(other.value) == (str(error) or repr(error))


def test_all_processes_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.ENVIRONMENT:
        monkeypatch.setenv(name, "1")
    with pytest.raises(DataError, match=r"device: expected each process to have a GPU of its own"):
        distributed.start("cuda")
