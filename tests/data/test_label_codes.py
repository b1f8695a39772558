"""Label maps as codes: exact there and back, and never a class that does not exist."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from medpair.data.label_codes import LabelCode, restricted

ENCODINGS = ["grey", "one_hot", "bits"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("num_classes", [*range(2, 41), 256, 300])
def test_round_trip_even_with_noise(encoding: Any, num_classes: int) -> None:
    code = LabelCode(num_classes, encoding)
    label = torch.arange(num_classes).repeat(2)[: 2 * num_classes].view(2, num_classes, 1)
    words = code.encode(label)
    assert words.shape == (2, code.channels, num_classes, 1)
    assert words.dtype == torch.float32
    assert words.abs().max() == 1
    decoded = code.decode(words)
    assert decoded.dtype == (torch.uint8 if num_classes <= 256 else torch.int32)
    assert torch.equal(decoded.long(), label)
    # anything nearer than half the distance of two words is the same class
    distance = min(2.0, 2.0 / (num_classes - 1) if encoding == "grey" else 2.0)
    noise = torch.randn(words.shape, generator=torch.Generator().manual_seed(0))
    noise *= 0.49 * distance / noise.norm(dim=1, keepdim=True)
    assert torch.equal(code.decode(words + noise).long(), label)


@pytest.mark.parametrize(
    ("num_classes", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (33, 6), (64, 6)]
)
def test_channels(num_classes: int, bits: int) -> None:
    assert LabelCode(num_classes, "bits").channels == bits
    assert LabelCode(num_classes, "one_hot").channels == num_classes
    assert LabelCode(num_classes, "grey").channels == 1
    assert LabelCode(num_classes, "bits").num_classes == num_classes


def test_words_are_what_the_encodings_say() -> None:
    assert LabelCode(3, "grey").words.tolist() == [[-1], [0], [1]]
    assert LabelCode(3, "one_hot").words.tolist() == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    # the digits, most significant first
    assert LabelCode(4, "bits").words.tolist() == [[-1, -1], [-1, 1], [1, -1], [1, 1]]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("num_classes", [2, 3, 5, 9, 40])
def test_any_numbers_are_decoded_to_the_nearest_class(encoding: Any, num_classes: int) -> None:
    code = LabelCode(num_classes, encoding)
    x = 1.5 * torch.randn(1, code.channels, 5000, generator=torch.Generator().manual_seed(0))
    distances = (x[0].T[:, None] - code.words[None]).square().sum(dim=2)
    assert torch.equal(code.decode(x)[0].long(), distances.argmin(dim=1))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("num_classes", [2, 3, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_broken_numbers_are_decoded_to_some_class(
    encoding: Any, num_classes: int, dtype: torch.dtype
) -> None:
    code = LabelCode(num_classes, encoding)
    odd = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0], dtype=dtype)
    picks = torch.randint(
        0, len(odd), (code.channels, 400), generator=torch.Generator().manual_seed(0)
    )
    decoded = code.decode(odd[picks][None])
    assert decoded.shape == (1, 400)
    assert int(decoded.min()) >= 0
    assert int(decoded.max()) < num_classes


def test_a_label_map_that_is_given_leaves_what_it_allows() -> None:
    """Of six classes 1 to 3 have a label: elsewhere it is background, or one of the other two."""
    label = torch.tensor([[0, 1, 2, 3, 4, 5]])
    logits = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0))
    found = restricted(logits, label, 3)
    free = [0, 4, 5]
    for voxel in range(6):
        allowed = [voxel] if voxel in (1, 2, 3) else free
        finite = found[0, :, voxel].isfinite().nonzero().flatten().tolist()
        assert finite == allowed
        assert torch.equal(found[0, allowed, voxel], logits[0, allowed, voxel])
    # what is certain has no loss and no gradient
    logits.requires_grad_()
    each = torch.nn.functional.cross_entropy(restricted(logits, label, 3), label, reduction="none")
    assert each[0, 1:4].tolist() == [0, 0, 0]
    each.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1:4].abs().max() == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_undecided_is_decoded_to_a_class_that_is_allowed(encoding: Any) -> None:
    """Halfway between the bits of 5 and 6 lies 4, which has a label and is not there."""
    code = LabelCode(8, encoding)
    label = torch.tensor([[0, 0, 3]])
    between = (code.words[5] + code.words[6]) / 2
    numbers = torch.stack([between, code.words[4], code.words[7]])[None].movedim(-1, 1)
    found = code.decode(numbers, label, 4)[0].tolist()
    assert found[0] in (5, 6)
    assert found[1] in (0, 5, 6, 7)
    assert found[2] == 3


def test_a_number_that_is_missing_says_nothing() -> None:
    two_voxels = torch.tensor([[1.0, -1.0], [math.nan, 1.0]]).T[None]
    first, second = LabelCode(4, "bits").decode(two_voxels)[0].tolist()
    assert first == 2
    # the low digit alone speaks for 1 or 3
    assert second in (1, 3)


def test_grey_shows_a_third_class_between_two_others_and_bits_need_not() -> None:
    """Why grey is the paper's way and not the default."""
    blurred = {
        name: LabelCode(3, name).encode(torch.tensor([[0, 2]])).mean(dim=2, keepdim=True)
        for name in ("grey", "one_hot")
    }
    assert LabelCode(3, "grey").decode(blurred["grey"]).item() == 1
    assert LabelCode(3, "one_hot").decode(blurred["one_hot"]).item() in (0, 2)


@pytest.mark.parametrize("encoding", ["grey", "one_hot", "bits"])
def test_the_posterior_of_a_noisy_code_is_bayes_rule(encoding: str) -> None:
    """Against the Gaussian density of each word, times the prior, normalised."""
    code = LabelCode(5, encoding)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (3, 4, 6), generator=generator)
    alpha, sigma = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.4, 0.8, 0.9])
    shaped = [value.view(3, 1, 1, 1) for value in (alpha, sigma)]
    words = code.encode(label)
    noisy = shaped[0] * words + shaped[1] * torch.randn(words.shape, generator=generator)
    prior = torch.randn(3, 5, 4, 6, generator=generator)
    found = (prior + code.evidence(noisy, *shaped)).softmax(dim=1)
    gaussian = torch.distributions.Normal(0.0, 1.0)
    density = torch.stack(
        [
            gaussian.log_prob((noisy - shaped[0] * word.view(1, -1, 1, 1)) / shaped[1]).sum(dim=1)
            for word in code.words
        ],
        dim=1,
    )
    torch.testing.assert_close(found, (prior + density).softmax(dim=1), atol=1e-5, rtol=1e-4)
    mean = sum(found[:, k : k + 1] * word.view(1, -1, 1, 1) for k, word in enumerate(code.words))
    torch.testing.assert_close(code.mean(found.log()), mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoding", ["grey", "one_hot", "bits"])
def test_what_is_given_clean_counts_as_certain(encoding: str) -> None:
    """At a time of nothing but noise, the given slice still says its class, the hidden one none."""
    code = LabelCode(5, encoding)  # type: ignore[arg-type]
    label = torch.tensor([[[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]])
    x = code.encode(label)
    hidden = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    alpha, sigma = torch.tensor(1e-3).view(1, 1, 1, 1), torch.tensor(1.0).view(1, 1, 1, 1)
    found = code.evidence(x, alpha, sigma, hidden).softmax(dim=1)
    chosen = found.gather(1, label[:, None])[:, 0]
    assert (chosen[:, 0] > 1 - 1e-6).all()
    torch.testing.assert_close(chosen[:, 1], torch.full((1, 5), 0.2), atol=5e-3, rtol=0)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes: expected two or more, found 1"):
        LabelCode(1)
    with pytest.raises(ValueError, match="expected grey, one_hot or bits, found 'hot'"):
        LabelCode(3, "hot")  # type: ignore[arg-type]
