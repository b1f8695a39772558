"""Bundles one after the other, each in a process of its own, as a user would run them."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medpair.data.files import DataError, read_json, write_json
from medpair.engines.checkpoint import plain

WGAN = "wgan_sn_mp"
SEGMENTATION = "unet_segmentation"
# MedGen3D's stages in order: each bundle, and the folder of what it makes
LABELS, IMAGES, REFINER = "medgen3d_mcdpm", "medgen3d_vid2vid", "medgen3d_semantic_refiner"
STAGES = {LABELS: "labels", IMAGES: "images", REFINER: "pairs"}


def find_bundles(folder: str | Path = "bundles") -> Path:
    """Return the folder with the bundles: as given, or that of the repository the package lies in.

    Raises:
        DataError: if there is none.
    """
    if Path(folder).is_dir():
        return Path(folder)
    own = Path(__file__).resolve().parents[2] / "bundles"
    if str(folder) == "bundles" and own.is_dir():
        return own
    raise DataError(f"{folder}: expected the folder with the bundles (--bundles), found none there")


def bundle_command(bundle: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> list[str]:
    """Return the command line that runs a bundle with some of its configs and overrides."""
    paths = [str(bundle / "configs" / f"{name}.json") for name in configs]
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", paths[0] if len(paths) == 1 else str(paths)]
    command += ["--bundle_root", str(bundle)]
    for key, value in overrides.items():
        # the runner reads Python literals: True, None, not true, null
        command += [f"--{key}", value if isinstance(value, str) else repr(value)]
    return command


def run_bundle(bundle: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Run a bundle and wait for it.

    Raises:
        DataError: if it fails; its own messages have been shown.
    """
    command = bundle_command(bundle, configs, overrides)
    print("\n$ " + shlex.join(["python", *command[1:]]), flush=True)
    code = run_to_the_end(command)
    if code != 0:
        raise DataError(f"{bundle.name}: expected the run to end well, found exit code {code}")


def run_to_the_end(command: Sequence[str]) -> int:
    """Run a command and return its exit code; it may save its work when it is interrupted.

    ``subprocess.run`` kills the command a quarter of a second after Ctrl-C, and leaves it running
    when this process alone is terminated. Here a termination is passed on, and both are waited
    for.
    """
    with subprocess.Popen(command) as process:
        before = None
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has told the command as well
            process.wait()
            raise
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)


def train_step(
    folder: Path, bundle: Path, configs: Sequence[str], overrides: Mapping[str, Any]
) -> None:
    """Train unless a finished training is there; ``finished.json`` is written last."""
    done = folder / "finished.json"
    asked = plain({"configs": list(configs), **overrides})
    if done.exists():
        if read_json(done) != asked:
            raise DataError(
                f"{done}: expected the training asked for now, {asked}, "
                f"found {read_json(done)} (another output_dir keeps both)"
            )
        print(f"\n{folder}: trained already", flush=True)
        return
    run_bundle(bundle, configs, {**overrides, "output_dir": str(folder)})
    write_json(done, asked)


def generate_medgen3d(
    output: Path,
    bundles: Path,
    num_samples: int = 16,
    dataset: Path | None = None,
    labels: Path | None = None,
    models: Path | None = None,
    preset: str | None = None,
    training: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    label_group: str | None = None,
) -> Path:
    """Run MedGen3D's stages: label maps, then images, then refined images (Han et al. 2023).

    With ``dataset``, the stages are trained on it first. Every stage is a dataset folder in
    ``output``: ``labels``, ``images``, ``pairs``; finished work is kept.

    Args:
        output: where everything goes; trained weights go into ``output / "models"``.
        bundles: the folder with the bundles.
        num_samples: how many label maps are generated.
        dataset: the real cohort to train on.
        labels: the user's own label maps (a dataset folder, images not needed): the first stage is
            left out, and every case of ``training`` gets an image.
        models: folder with ``BUNDLE/model.pt`` of each stage; default the bundles' own weights.
        preset: overlay of each bundle's training, such as ``compact``.
        training: knobs of every training (``label_group``, ``spacing``, ...).
        sampling: knobs of every inference (``device``, ``seed``, ...).
        options: further knobs by bundle; those named ``train_KEY`` go to its training.
        label_group: merge of the labels in ``labels``.

    Returns:
        The folder with the pairs.

    Raises:
        DataError: if a stage fails.
    """
    options = dict(options or {})
    unknown = sorted(set(options) - set(STAGES))
    if unknown:
        raise DataError(f"options: expected some of {list(STAGES)}, found {unknown}")
    source = labels
    for bundle, name in STAGES.items():
        if bundle == LABELS and labels is not None:
            continue
        own = dict(options.get(bundle, {}))
        of_training = {key: own.pop(key) for key in list(own) if key.startswith("train_")}
        weights = (models or bundles) / bundle / ("models" if models is None else "")
        if dataset is not None:
            weights = output / "models" / bundle
            knobs = {"dataset_dir": str(dataset), **(training or {})}
            # the slicing axis is a matter of sequences; the refiner has all three views
            if bundle == REFINER:
                knobs.pop("slicing_axis", None)
            knobs |= {key.removeprefix("train_"): value for key, value in of_training.items()}
            train_step(weights, bundles / bundle, ["train", *([preset] if preset else [])], knobs)
        knobs = {"ckpt_path": str(weights / "model.pt"), "output_dir": str(output / name)}
        if bundle == LABELS:
            knobs["num_samples"] = num_samples
        else:
            knobs["dataset_dir"] = str(source)
            if source == labels and label_group is not None:
                knobs["label_group"] = label_group
        run_bundle(bundles / bundle, ["inference"], {**knobs, **(sampling or {}), **own})
        source = output / name
    assert source is not None
    return source
