"""Label maps as the continuous codes that a diffusion denoises, and back.

A code has ``channels`` numbers in -1..1 per voxel:

``grey``     the paper's: one number, evenly spaced by class. Halfway between two classes lies a
             third one, so that a blurred boundary shows a class that is not there.
``one_hot``  one number per class, background included.
``bits``     the class's binary digits (analog bits; Chen et al. 2023): few channels, no order.

Decoding takes the class whose code is nearest: whatever the numbers are, the result is a class of
the label set.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

# Slices given clean count as hardly noisy: log-odds of 20 between the two nearest classes
CERTAIN = 20.0
Encoding = Literal["grey", "one_hot", "bits"]


class LabelCode:
    """One code word per class.

    Args:
        num_classes: background included, two or more.
        encoding: see the module.

    Raises:
        ValueError: on another encoding, or fewer than two classes.
    """

    def __init__(self, num_classes: int, encoding: Encoding = "bits") -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes: expected two or more, found {num_classes}")
        if encoding == "grey":
            words: np.ndarray = np.linspace(-1.0, 1.0, num_classes)[:, None]
        elif encoding == "one_hot":
            words = 2.0 * np.eye(num_classes) - 1.0
        elif encoding == "bits":
            digits = max(1, math.ceil(math.log2(num_classes)))
            classes = np.arange(num_classes)[:, None]
            words = 2.0 * (classes >> np.arange(digits)[::-1] & 1) - 1.0
        else:
            raise ValueError(f"encoding: expected grey, one_hot or bits, found {encoding!r}")
        self.words = torch.from_numpy(words.astype(np.float32))
        self.settings = {"num_classes": num_classes, "encoding": encoding}

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.words)

    @property
    def channels(self) -> int:
        """Numbers per voxel."""
        return self.words.shape[1]

    @property
    def log_scale(self) -> float:
        """How much less noise the code bears than one whose nearest words are 2 apart, as a log.

        0 for bits; above it for the grey values of three or more classes, below for one-hot.
        """
        return math.log(2.0 / float(torch.nn.functional.pdist(self.words).min()))

    def encode(self, label: Tensor) -> Tensor:
        """(B, ...) class indices -> (B, channels, ...) codes."""
        words = self.words.to(label.device)
        return words[label.long()].movedim(-1, 1)

    def evidence(
        self, noisy: Tensor, alpha: Tensor, sigma: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """Return what a noisy code says of its own voxel: (B, num_classes, ...) log-likelihoods.

        For ``noisy = alpha word + sigma eps``, class k has, up to a constant, ``(alpha <noisy,
        word_k> - alpha^2 |word_k|^2 / 2) / sigma^2``. Added to the logits of a network that knows
        the surroundings alone, this is Bayes' rule.

        Args:
            noisy: (B, channels, ...) the noisy code.
            alpha: broadcastable to ``noisy``, with one channel.
            sigma: likewise, above 0.
            hidden: likewise, 1 where the code is noisy, 0 where it is given clean and thus certain.
        """
        if hidden is not None:
            alpha = torch.lerp(torch.ones_like(hidden), alpha, hidden)
            least = torch.nn.functional.pdist(self.words).min() / (2 * CERTAIN) ** 0.5
            sigma = torch.lerp(torch.full_like(hidden, float(least)), sigma, hidden)
        words = self.words.to(noisy)
        with torch.autocast(noisy.device.type, enabled=False):  # log-likelihoods reach hundreds
            fit = torch.einsum("bc...,kc->bk...", noisy, words)
        size = words.square().sum(dim=1).view(1, -1, *[1] * (noisy.ndim - 2))
        gain = alpha / sigma.square()
        return gain * (fit - 0.5 * alpha * size)

    def mean(self, logits: Tensor) -> Tensor:
        """(B, num_classes, ...) logits -> (B, channels, ...) expected code."""
        with torch.autocast(logits.device.type, enabled=False):
            return torch.einsum("bk...,kc->bc...", logits.softmax(dim=1), self.words.to(logits))

    def decode(self, code: Tensor, given: Tensor | None = None, labelled: int = 0) -> Tensor:
        """(B, channels, ...) numbers -> (B, ...) class indices, uint8 or int32.

        Args:
            code: the numbers.
            given: (B, ...) a label map that restricts the classes, see ``restricted``: halfway
                between two classes lies another one's word, which may not be allowed there.
            labelled: how many classes have a label, with ``given``.
        """
        words = self.words.to(code)
        # |code - word|^2 without the term that all words share; NaN would win no comparison
        score = torch.tensordot(code.nan_to_num(), words, dims=([1], [1]))
        score = score - 0.5 * words.square().sum(dim=1)
        if given is not None:
            score = restricted(score.movedim(-1, 1), given, labelled).movedim(1, -1)
        dtype = torch.uint8 if self.num_classes <= 256 else torch.int32
        return score.argmax(dim=-1).to(dtype)


def restricted(logits: Tensor, label: Tensor, labelled: int) -> Tensor:
    """Return logits (B, K, ...) in which a label map that is given leaves only what it allows.

    A voxel that has a label has it for certain; any other one is background, or a class of what has
    no label (see ``medpair.data.unlabelled``).

    Args:
        logits: (B, K, ...).
        label: (B, ...) class indices; those from 1 to ``labelled`` are given.
        labelled: how many classes have a label, background not counted.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    classes = classes.view(1, -1, *[1] * (logits.ndim - 2))
    given = label[:, None].long()
    free = (classes == 0) | (classes > labelled)
    allowed = torch.where(has_label(given, labelled), classes == given, free)
    return logits.masked_fill(~allowed, -math.inf)


def has_label(label: Tensor, labelled: int) -> Tensor:
    """Return where class indices are those of labels: from 1 to ``labelled``."""
    return (label > 0) & (label <= labelled)
