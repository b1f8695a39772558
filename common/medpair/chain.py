"""Bundles one after the other, each in a process of its own, as a user would run them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from fire.parser import DefaultParseValue

from medpair.chain_completion import (
    COMPLETED,
    COMPLETION,
    completion_training,
    completion_weights,
    lacks_unlabelled,
    may_complete,
)
from medpair.chain_options import (
    IMAGES,
    LABELS,
    REFINER,
    STAGES,
    refuse_completion_knobs,
    refuse_label_knobs,
    refuse_training_knobs,
    require_options,
    separated,
)
from medpair.data.dataset import as_folders
from medpair.data.files import DataError, read_json, write_json
from medpair.engines.checkpoint import plain
from medpair.engines.settings import differences, training_cases

WGAN = "wgan_sn_mp"
SEGMENTATION = "unet_segmentation"
# label maps that are generated where no number was asked for
NUM_SAMPLES = 16
# Knobs of a training that do not make it another one: with these an interrupted training may go on
# differently (docs/faults_of_a_run.md). Not max_epochs: it may go on longer, but ends elsewhere.
NEUTRAL = frozenset(
    {
        *("device", "amp", "amp_dtype", "channels_last"),
        *("num_workers", "cache_rate", "max_bad_steps", "val_interval", "log_interval"),
    }
)
PATHS = ("dataset_dir", "ckpt_path")
# entry of finished.json: the paths as seen from its folder, to know them when both have moved
FROM_HERE = "from_here"


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
        command += [f"--{key}", value if reads_as_typed(value) else repr(value)]
    return command


def reads_as_typed(value: Any) -> TypeGuard[str]:
    """Return whether the runner reads a value's text as that text.

    It reads Python literals (True, None; not true, null), in text, too, which then needs quotes:
    the label group 5, the folder 2024_05. A list in text is meant as a list.
    """
    if not isinstance(value, str):
        return False
    return value[:1] in ("[", "(", "{") or DefaultParseValue(value) == value


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
    started: list[subprocess.Popen[bytes]] = []
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        for process in started:
            process.terminate()

    before = None
    if threading.current_thread() is threading.main_thread():
        # before the command runs, or a termination at its start would end this process alone
        before = signal.signal(signal.SIGTERM, stop)
    try:
        with subprocess.Popen(command) as process:
            started.append(process)
            if stopped.is_set():
                process.terminate()
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
    """Train unless a finished training is there; ``finished.json`` is written last.

    Raises:
        DataError: if the training fails, or another one has finished in ``folder``.
    """
    done = folder / "finished.json"
    asked = plain({"configs": list(configs), **overrides})
    asked |= resolved_paths(asked)
    folders = asked.get("dataset_dir", [])
    # where there is no dataset, or a faulty one, the bundle says so in its own words
    with suppress(DataError):
        asked |= {"cases": training_cases(folders, asked.get("label_group"))} if folders else {}
    seen = {
        key: [os.path.relpath(path, folder.resolve()) for path in asked[key]]
        for key in PATHS
        if asked.get(key) is not None
    }
    if done.exists():
        require_same_training(done, asked, seen)
        print(f"\n{folder}: trained already", flush=True)
        return
    run_bundle(bundle, configs, {**overrides, "output_dir": str(folder)})
    write_json(done, {**asked, FROM_HERE: seen})


def require_same_training(
    done: Path, asked: Mapping[str, Any], seen: Mapping[str, list[str]]
) -> None:
    """Refuse a ``finished.json`` of another training than the one that is asked for.

    Args:
        done: that file.
        asked: configs and knobs, paths resolved.
        seen: the same paths as seen from the file's folder.

    Raises:
        DataError: lists what differs.
    """
    content = read_json(done)
    then = dict(content) if isinstance(content, dict) else {}
    known = then.pop(FROM_HERE, {})
    then |= resolved_paths(then)  # earlier versions left them as they were typed
    then |= {key: asked[key] for key in seen if known.get(key) == seen[key]}
    # earlier versions did not remember the cases
    apart = NEUTRAL if "cases" in then and "cases" in asked else NEUTRAL | {"cases"}
    before, now = ({k: t[k] for k in t.keys() - apart} for t in (then, asked))
    differing = differences(before, now)
    if differing:
        raise DataError(
            f"{done}: expected the training asked for now, found another: {'; '.join(differing)} "
            "(another output_dir keeps both)"
        )


def resolved_paths(knobs: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the paths among a training's knobs, absolute: one folder is written in many ways."""
    found = {}
    for key in PATHS:
        value = knobs.get(key)
        if value is not None:
            folders = as_folders([str(v) for v in value] if isinstance(value, list) else str(value))
            found[key] = [str(path.resolve()) for path in folders]
    return found


def generate_medgen3d(
    output: Path,
    bundles: Path,
    num_samples: int | None = None,
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
    ``output``: ``labels``, ``images``, ``pairs``; finished work is kept. What would have no effect
    is refused. Where images are drawn with classes for what has no label, and the label maps lack
    them, those are generated around them first (``completed``), by a network of its own that is
    trained with ``dataset``, or by weights that are there.

    Args:
        output: where everything goes; trained weights go into ``output / "models"``.
        bundles: the folder with the bundles.
        num_samples: how many label maps are generated, 16 by default; not with ``labels``.
        dataset: the real cohort to train on.
        labels: the user's own label maps (a dataset folder, images not needed): the first stage is
            left out, and every case of ``training`` gets an image.
        models: folder with ``BUNDLE/model.pt`` of each stage, and perhaps that of
            ``medgen3d_mcdpm_completion``; default the bundles' own weights. Not with ``dataset``.
        preset: overlay of each bundle's training, such as ``compact``.
        training: knobs of every training (``label_group``, ``spacing``, ...); without ``dataset``
            only those that ``sampling`` has too.
        sampling: knobs of every inference (``device``, ``seed``, ...).
        options: further knobs by bundle; those named ``train_KEY`` go to its training. Those of
            ``medgen3d_mcdpm_completion`` are for what completes label maps.
        label_group: merge of the labels in ``labels``.

    Returns:
        The folder with the pairs.

    Raises:
        DataError: if a stage fails, or for a knob that would have no effect.
    """
    options = {} if options is None else options
    require_options(options)
    if dataset is None:
        merge = None if labels is not None else label_group
        shared = {*(sampling or {}), *(() if labels is None else ("label_group",))}
        refuse_training_knobs(preset, merge, {*(training or {})} - shared, options)
    elif models is not None:
        raise DataError("models: expected it without --dataset_dir, which trains, found both")
    if labels is not None:
        refuse_label_knobs(num_samples, options)
    completion = completion_weights(bundles, models, output if dataset is not None else None)
    drawing, of_drawing = separated(options.get(IMAGES, {}))
    split = str(drawing.get("split", "training"))
    if dataset is None:
        drawer = (models or bundles) / IMAGES / ("models" if models is None else "") / "model.pt"
        completes = may_complete(drawer, completion, labels, label_group, split)
    else:
        classes = {**(training or {}), **of_drawing}.get("unlabelled_classes")
        completes = preset == "finetune" or bool(classes)
    refuse_completion_knobs(completes, options)
    source = labels
    for bundle, name in STAGES.items():
        if bundle == LABELS and labels is not None:
            continue
        own, of_training = separated(options.get(bundle, {}))
        weights = (models or bundles) / bundle / ("models" if models is None else "")
        if dataset is not None:
            weights = output / "models" / bundle
            knobs = {"dataset_dir": str(dataset), **(training or {})}
            # the slicing axis is a matter of sequences; the refiner has all three views
            if bundle == REFINER:
                knobs.pop("slicing_axis", None)
            # the classes that have a label are learned alone, and what has none around them
            if bundle == LABELS:
                knobs.pop("unlabelled_classes", None)
            knobs |= of_training
            train_step(weights, bundles / bundle, ["train", *([preset] if preset else [])], knobs)
        knobs = {"ckpt_path": str(weights / "model.pt"), "output_dir": str(output / name)}
        if bundle == LABELS:
            knobs["num_samples"] = NUM_SAMPLES if num_samples is None else num_samples
        else:
            knobs["dataset_dir"] = str(source)
            if source == labels and label_group is not None:
                knobs["label_group"] = label_group
        if bundle == IMAGES and lacks_unlabelled(
            Path(knobs["dataset_dir"]), weights / "model.pt", knobs.get("label_group"), split
        ):
            completing, of_training = separated(options.get(COMPLETION, {}))
            if dataset is not None:
                learned = {"dataset_dir": str(dataset), **(training or {}), **of_training}
                asked = completion_training(preset, weights / "model.pt")
                train_step(completion.parent, bundles / LABELS, asked[0], {**asked[1], **learned})
            if completion.exists():
                made = {"ckpt_path": str(completion), "output_dir": str(output / COMPLETED)}
                given = {**knobs, "split": split, **made, **(sampling or {}), **completing}
                run_bundle(bundles / LABELS, ["inference", "complete"], given)
                knobs["dataset_dir"] = made["output_dir"]
                knobs.pop("label_group", None)
        run_bundle(bundles / bundle, ["inference"], {**knobs, **(sampling or {}), **own})
        source = output / name
    assert source is not None
    return source
