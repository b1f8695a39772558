"""SPADE computed once per label map against SPADE computed at every step: the same slices, sooner.

One refinement of a batch of slices (ancestral, 10 steps of 100), timed alternately in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from medpair.diffusion.process import Diffusion
from medpair.inferers.three_views import ThreeViewRefiner
from medpair.networks.semantic_diffusion import SemanticDenoiser


def main() -> None:
    """Print both times, their ratio, and the largest difference of the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = SemanticDenoiser(5, 2, "shared", (64, 128, 192), 2, (False, False, True), 128).eval()
    for parameter in network.parameters():  # layers that begin at zero would hide differences
        torch.nn.init.normal_(parameter, std=0.02)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    card = {"diffusion": Diffusion(learn_variance=True).settings}
    shape = (options.size, options.size, options.slices)
    image, label = torch.rand(shape) * 2 - 1, torch.randint(0, 5, shape)
    sides = {
        name: ThreeViewRefiner(card, views=["axial"], slice_batch=options.slices, cached=cached)
        for name, cached in (("at every step", False), ("once", True))
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results = {}
    for _ in range(options.repeats):
        for name, refiner in sides.items():
            start = time.perf_counter()
            with torch.no_grad():
                results[name] = refiner.refine(image, label, 0, network)
            seconds[name].append(time.perf_counter() - start)
    difference = (results["once"] - results["at every step"]).abs().max().item()
    ratio = statistics.median(slow / fast for slow, fast in zip(*seconds.values(), strict=True))
    for name, values in seconds.items():
        print(f"SPADE {name:14} {statistics.median(values):7.2f} s")
    print(f"ratio {ratio:.2f}, largest difference {difference:.1e} on the scale of -1..1")


if __name__ == "__main__":
    main()
