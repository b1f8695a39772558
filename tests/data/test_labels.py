"""Label values, their groups, and label maps as network channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpair.data.files import DataError
from medpair.data.labels import LabelChannels, LabelMap, short_list

CONTENT = {
    "labels": {"csf": 4, "background": 0, "thalamus": 60, "caudate": 36, "cortex": 200},
    "label_groups": {
        "tissue": {
            "2": {"name": "fluid", "values": [4]},
            "1": {"name": "grey", "values": [36, 60]},
            "10": {"name": "outer", "values": [200]},
        },
        "deep": {
            "0": {"name": "background", "values": [0, 4]},
            "1": {"name": "deep", "values": [60, 36]},
        },
    },
}


def test_classes_follow_the_values_and_gaps_close() -> None:
    labels = LabelMap.from_dataset_json(CONTENT)
    assert labels.names == ("background", "csf", "caudate", "thalamus", "cortex")
    assert labels.values == ((0,), (4,), (36,), (60,), (200,))
    assert labels.num_labels == 4
    assert labels.known() == {0, 4, 36, 60, 200}
    assert labels.channel_def == {
        "background": 0,
        "csf": 1,
        "caudate": 2,
        "thalamus": 3,
        "cortex": 4,
    }
    encoded = labels.encode(np.array([[0, 200], [36, 4]], np.int16))
    assert encoded.tolist() == [[0, 4], [2, 1]]
    assert encoded.dtype == np.uint8


def test_group_merges_and_orders_by_number() -> None:
    labels = LabelMap.from_dataset_json(CONTENT, "tissue")
    assert labels.names == ("background", "grey", "fluid", "outer")
    assert labels.encode(np.array([0, 4, 36, 60, 200])).tolist() == [0, 2, 1, 1, 3]
    assert labels.ignored == ()


def test_values_outside_the_group_become_background() -> None:
    labels = LabelMap.from_dataset_json(CONTENT, "deep")
    assert labels.names == ("background", "deep")
    assert labels.ignored == (4, 200)
    assert labels.encode(np.array([0, 4, 36, 60, 200])).tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("group", [None, "tissue", "deep"])
def test_unknown_values_are_named(group: str | None) -> None:
    labels = LabelMap.from_dataset_json(CONTENT, group)
    with pytest.raises(DataError) as caught:
        labels.encode(np.array([0, 255, 36, 5, -1, 5]), "case_007.nii.gz")
    assert str(caught.value) == (
        "case_007.nii.gz: expected label values in [0, 4, 36, 60, 200], found [-1, 5, 255]"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, np.int64, np.float32, ">i4"])
def test_encode_takes_any_type_of_whole_numbers(dtype: Any) -> None:
    labels = LabelMap.from_dataset_json(CONTENT)
    stored = np.array([[[4, 36]]], dtype)
    assert labels.encode(stored).tolist() == [[[1, 2]]]
    assert labels.encode(stored[:0]).shape == (0, 1, 2)


@pytest.mark.parametrize("value", [0.5, np.nan, 4.001, np.inf])
def test_encode_refuses_fractions(value: float) -> None:
    labels = LabelMap.from_dataset_json(CONTENT)
    with pytest.raises(DataError, match="label: expected whole label values, found"):
        labels.encode(np.array([0.0, value, 4.0]))


def test_negative_values_and_many_classes() -> None:
    labels = LabelMap(("background", "low", "high"), ((0,), (-5,), (7,)))
    assert labels.encode(np.array([-5, 0, 7], np.int8)).tolist() == [1, 0, 2]
    many = {"background": 0} | {f"class {k}": 2 * k for k in range(1, 300)}
    encoded = LabelMap.from_dataset_json({"labels": many}).encode(np.array([598, 0, 2]))
    assert encoded.dtype == np.uint16
    assert encoded.tolist() == [299, 0, 1]


@pytest.mark.parametrize(
    ("content", "group", "message"),
    [
        ({}, None, "labels: expected .* found None"),
        ({"labels": {}}, None, "labels: expected names with values, 0 for the background"),
        ({"labels": {"background": 0}}, None, "0 for the background and at least one more"),
        ({"labels": {"a": 1, "b": 2}}, None, "0 for the background"),
        ({"labels": {"0": "background", "1": "a"}}, None, "labels: expected {name: whole number}"),
        ({"labels": {"background": 0, "a": [1, 2]}}, None, "expected {name: whole number}"),
        ({"labels": {"background": 0, "a": 1.5}}, None, "expected {name: whole number}"),
        ({"labels": [0, 1]}, None, "expected {name: whole number}"),
        (CONTENT, "lobes", r"label_group: expected one of \['deep', 'tissue'\], found 'lobes'"),
        ({"labels": CONTENT["labels"]}, "lobes", r"label_group: expected one of \[\]"),
        (CONTENT | {"label_groups": {"g": {"1": [4]}}}, "g", "label_groups.g: expected"),
        (CONTENT | {"label_groups": {"g": {"x": {}}}}, "g", "label_groups.g: expected"),
        (CONTENT | {"label_groups": {"g": [4]}}, "g", "label_groups.g: expected"),
    ],
)
def test_unusable_labels(content: dict[str, Any], group: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelMap.from_dataset_json(content, group)


# --- channels ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    num_labels=st.sampled_from([1, 2, 5, 148, 255, 300]),
    channels=st.sampled_from([(-1.0, 1.0, 0.0), (0.0, 1.0, 0.4)]),
    dtype=st.sampled_from([torch.uint8, torch.int64, torch.float32]),
    data=st.data(),
)
def test_decode_undoes_encode(
    num_labels: int, channels: tuple[float, float, float], dtype: torch.dtype, data: st.DataObject
) -> None:
    if dtype == torch.uint8:
        num_labels = min(num_labels, 255)
    values = data.draw(st.lists(st.integers(0, num_labels), min_size=12, max_size=12))
    label = torch.tensor([*values, 0, num_labels, 1, 0]).to(dtype).view(2, 1, 2, 2, 2)
    coder = LabelChannels(num_labels, *channels)
    encoded = coder.encode(label)
    off, on, _ = channels
    assert encoded.shape == (2, num_labels, 2, 2, 2)
    assert encoded.dtype == torch.float32
    assert set(encoded.unique().tolist()) <= {off, on}
    assert torch.equal((encoded == on).sum(1, keepdim=True), (label > 0).long())
    decoded = coder.decode(encoded)
    assert decoded.shape == label.shape
    assert decoded.dtype == (torch.uint8 if num_labels <= 255 else torch.int32)
    assert torch.equal(decoded.to(torch.int64), label.to(torch.int64))


def test_binary_rule_of_subramaniam_et_al() -> None:
    coder = LabelChannels(1, off=0.0, on=1.0, threshold=0.4)
    label = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1)
    assert coder.encode(label).flatten().tolist() == [0.0, 1.0]
    tanh = torch.tensor([-1.0, 0.0, 0.39, 0.4, 0.41, 1.0]).view(1, 1, 6, 1, 1)
    # their code sets values above 0.4 to 1 and leaves the rest at 0
    assert coder.decode(tanh).flatten().tolist() == [0, 0, 0, 0, 1, 1]


def test_largest_channel_wins_where_it_exceeds_the_threshold() -> None:
    channels = torch.tensor([[0.2, 0.9, -0.1], [0.3, 0.8, -0.2], [-1.0, 0.95, -0.3]])
    decoded = LabelChannels(3).decode(channels.view(1, 3, 3, 1, 1))
    assert decoded.flatten().tolist() == [2, 3, 0]
    raised = LabelChannels(3, threshold=0.5).decode(channels.view(1, 3, 3, 1, 1))
    assert raised.flatten().tolist() == [0, 3, 0]


def test_short_list_says_how_many_more() -> None:
    assert short_list([1, 2]) == "[1, 2]"
    assert short_list(range(100), limit=3) == "[0, 1, 2, and 97 more]"
    assert short_list([]) == "[]"


SAME = {"1": {"name": "kidney", "values": [1]}, "2": {"name": "kidney", "values": [2]}}
BACKGROUND = {"1": {"name": "nothing", "values": [1]}, "2": {"name": "kidney", "values": [2]}}


@pytest.mark.parametrize(
    ("content", "group"),
    [
        ({"labels": {"nothing": 0, "left": 1, "right": 2}, "label_groups": {"both": SAME}}, "both"),
        ({"labels": {"nothing": 0, "a": 1, "b": 2}, "label_groups": {"both": BACKGROUND}}, "both"),
        ({"labels": {"nothing": 0, "": 1}}, None),
    ],
)
def test_each_class_needs_a_name_of_its_own(content: dict[str, Any], group: str | None) -> None:
    with pytest.raises(DataError, match=r"expected a name of its own for each class, found \["):
        LabelMap.from_dataset_json(content, group)


def test_values_in_the_hundreds_of_millions_need_no_table_of_that_size() -> None:
    content = {"labels": {"background": 0, "low": -5, "a": 2**24 + 1, "b": 614454277, "c": 10**13}}
    stored = np.array([[-5, 10**13, 0], [614454277, 2**24 + 1, 0]])
    labels = LabelMap.from_dataset_json(content)
    assert labels.encode(stored).tolist() == [[1, 4, 0], [3, 2, 0]]
    with pytest.raises(DataError, match=r"found \[16777216\]"):
        labels.encode(np.array([2**24]))
