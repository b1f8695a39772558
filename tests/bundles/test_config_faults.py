"""Faults and traps of configurations and weights: named in one line, and never run."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from medpair.data.files import DataError, load_torch
from medpair.engines.config_code import foreign_code
from medpair.engines.config_errors import argument_refusal
from medpair.engines.knobs import refuse_unknown_knobs
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import BUNDLES, SMALL_WGAN, workflow

ALL = sorted(path.name for path in BUNDLES.iterdir() if (path / "configs").is_dir())
CONFIGS = sorted(BUNDLES.glob("*/configs/*.json"))
RUNNER = [str(Path("monai") / "bundle" / "__main__.py"), "run"]


class Payload:
    """What runs when it is unpickled: it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.proof, "w")


# --- what is written wrong ---------------------------------------------------------------------


@pytest.mark.fault(24)
@pytest.mark.parametrize("name", ["train", "inference"])
@pytest.mark.parametrize("bundle", ALL)
def test_a_key_given_twice_is_refused(bundle: str, name: str, tmp_path: Path) -> None:
    text = (BUNDLES / bundle / "configs" / f"{name}.json").read_text()
    path = tmp_path / f"{name}.json"
    path.write_text(text.replace('"seed":', '"batch_size": 3,\n    "seed":', 1))
    with pytest.raises(DataError, match=r"batch_size: expected each key once in an object") as e:
        refuse_unknown_knobs([*RUNNER, "--config_file", str(path)])
    assert str(e.value).startswith(str(path))


@pytest.mark.fault(24)
def test_no_json_is_refused_with_line_and_column(tmp_path: Path) -> None:
    text = (BUNDLES / "wgan_sn_mp" / "configs" / "train.json").read_text()
    path = tmp_path / "train.json"
    path.write_text(text.replace('"seed": 990,', '"seed": 990'))
    for read in (
        lambda: ConfigParser().read_config(str(path)),
        lambda: refuse_unknown_knobs([*RUNNER, "--config_file", str(path)]),
    ):
        with pytest.raises(ValueError, match=r"delimiter: line \d+ column \d+"):
            read()


def components(config: dict[str, Any]) -> list[tuple[list[str], dict[str, Any]]]:
    """Return every component of a configuration with its place."""
    found, stack = [], [([], config)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, dict):
            if "_target_" in value and not value["_target_"].startswith("torch."):
                found.append((place, value))
            stack += [([*place, key], item) for key, item in value.items()]
        elif isinstance(value, list):
            stack += [([*place, str(index)], item) for index, item in enumerate(value)]
    return found


@pytest.mark.fault(25)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_a_misspelt_argument_of_any_component_is_named_with_the_signature(path: Path) -> None:
    for place, component in components(json.loads(path.read_text())):
        arguments = [key for key in component if not key.startswith("_")]
        if not arguments:
            continue
        # in place of each argument nothing is needed: the call fails before it runs
        wrong = {"_target_": component["_target_"], f"{arguments[0]}x": None}
        wrong |= dict.fromkeys(arguments[1:])
        with pytest.raises(RuntimeError, match="Failed to instantiate") as caught:
            ConfigParser({"it": wrong}).get_parsed_content("it")
        line = argument_refusal(caught.value)
        if component["_target_"].rpartition(".")[2] in ("ProgressBar", "Compose"):
            continue
        assert line is not None, place
        assert f"{arguments[0]}x" in line
        assert arguments[0] in line.partition("found")[0]
        assert "\n" not in line


@pytest.mark.fault(25)
def test_the_real_command_ends_with_the_signature(dataset: str, tmp_path: Path) -> None:
    words = ["--config_file", str(BUNDLES / "wgan_sn_mp" / "configs" / "train.json")]
    words += ["--dataset_dir", dataset, "--output_dir", str(tmp_path / "out")]
    words += ["--label_channels#threshhold", "0.4"]
    command = [sys.executable, "-m", "monai.bundle", "run", *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    line = result.stderr.strip().splitlines()[-1]
    assert line == (
        "medpair: label_channels#threshhold: expected an argument of LabelChannels, found none of "
        "that name; did you mean threshold?"
    )
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_error_that_is_no_refusal_keeps_its_traceback() -> None:
    for broken in (
        {"_target_": "medpair.data.labels.short_list", "values": 3},  # a slip, not a refusal
        {"_target_": "builtins.int", "x": 1},  # no signature to be had
    ):
        with pytest.raises(RuntimeError) as caught:
            ConfigParser({"it": broken}).get_parsed_content("it")
        assert argument_refusal(caught.value) is None
    assert argument_refusal(ValueError("of another package")) is None


# --- what would be run ------------------------------------------------------------------------


@pytest.mark.fault(26)
@pytest.mark.parametrize("bundle", ALL)
def test_our_configurations_run_nothing_foreign(bundle: str) -> None:
    assert foreign_code(BUNDLES / bundle) == []


HOSTILE = [
    "$__import__('os').system('true')",
    "$import os",
    "$import torch, os",
    "$(lambda: 1)()",
    "$[x for x in (1,)]",
    "$open('/etc/passwd').read()",
    "$eval('1')",
    "$getattr(@network, 'x')",
    "$@network.__class__.__mro__",
    "$@network['__class__'].__subclasses__()",
    "$'{0.__class__}'.format(@network)",
    "$torch.load('x')",
    "$torch.hub.load('a', 'b')",
    "$monai.bundle.download('x')",
    "$monai.utils.os.system('true')",
    "$max.__self__.eval('1')",
    "$torch.cuda.is_available.__globals__",
    "$(x := 1)",
    "$" + "(" * 5000 + ")" * 5000,
]
HOSTILE_TARGETS = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "torch.load",
    "torch.hub.load",
    "monai.bundle.scripts.download",
    "monai.transforms.Lambda",
    "Lambdad",
    "medpair.chain.run_bundle",
    "torch.utils.cpp_extension.load",
    "shutil.rmtree",
]


@pytest.mark.fault(26)
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_expressions_are_listed_with_their_place(text: str, tmp_path: Path) -> None:
    path = tmp_path / "overlay.json"
    path.write_text(json.dumps({"train": {"handlers": [{"at": 1}, {"when": text}]}}))
    (fault,) = foreign_code(path)
    assert (fault.file, fault.key) == (str(path), "train#handlers#1#when")
    assert "\n" not in str(fault)


@pytest.mark.fault(26)
def test_hostile_targets_modes_files_and_formats_are_listed(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle" / "configs"
    bundle.mkdir(parents=True)
    entries: dict[str, Any] = {str(i): {"_target_": t} for i, t in enumerate(HOSTILE_TARGETS)}
    entries |= {"mode": {"_target_": "Compose", "_mode_": "debug"}, "file": "%../../x.json::y"}
    (bundle / "train.json").write_text(json.dumps(entries))
    (bundle / "other.yaml").write_text("a: $import os")
    (bundle / "broken.json").write_text("{")
    found = sorted(fault.key for fault in foreign_code(bundle.parent))
    targets = [f"{number}#_target_" for number in range(len(HOSTILE_TARGETS))]
    assert found == sorted([*targets, "mode#_mode_", "file", "file", "file"])


@pytest.mark.fault(26)
def test_the_verb_checks_bundles_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from medpair.cli import main

    proof = tmp_path / "proof"
    bundle = shutil.copytree(BUNDLES / "wgan_sn_mp", tmp_path / "bundle")
    for folder, code in ((bundle, 0), (bundle, 1)):
        monkeypatch.setattr(sys, "argv", ["medpair", "check", str(folder)])
        if code:
            with pytest.raises(SystemExit) as end:
                main()
            assert end.value.code == 1
            assert "initialize#0" in capsys.readouterr().out
        else:
            main()
            assert "no fault found" in capsys.readouterr().out
        hostile = {"initialize": [f"$open({str(proof)!r}, 'w')"]}
        (bundle / "configs" / "overlay.json").write_text(json.dumps(hostile))
    assert not proof.exists()


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("class", "__import__('pathlib').Path({proof!r}).touch() or logging.StreamHandler"),
        ("args", "(__import__('pathlib').Path({proof!r}).touch(),)"),
    ],
)
@pytest.mark.parametrize("bundle", ALL)
def test_hostile_logging_configurations_are_not_run(
    bundle: str, entry: str, value: str, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    folder = BUNDLES / bundle / "configs"
    lines = (folder / "logging.conf").read_text().splitlines()
    hostile = tmp_path / "logging.conf"
    hostile.write_text(
        "\n".join(
            f"{entry}={value.format(proof=str(proof))}" if line.startswith(f"{entry}=") else line
            for line in lines
        )
    )
    with pytest.raises(ValueError, match=r"refusing to apply logging config .*logging\.conf"):
        ConfigWorkflow(
            config_file=str(folder / "train.json"),
            meta_file=str(folder / "metadata.json"),
            logging_file=str(hostile),
            workflow_type="train",
        )
    assert not proof.exists()


@pytest.mark.fault(28)
def test_pickled_objects_are_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "model.pt"
    for save in (
        lambda content: torch.save(content, path),
        lambda content: torch.save(content, path, _use_new_zipfile_serialization=False),
        lambda content: path.write_bytes(pickle.dumps(content)),
    ):
        save({"weight": torch.zeros(3), "extra": Payload(proof)})
        with pytest.raises(DataError) as caught:
            load_torch(path)
        line = str(caught.value)
        assert line.startswith(f"{path}: expected a checkpoint of plain tensors, found one that")
        assert "\n" not in line
        # PyTorch's own words say how to load it all the same
        assert "weights_only" not in line
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()  # it would have run


@pytest.mark.fault(28)
@pytest.mark.parametrize("knob", ["inference", "finetuning", "resume"])
def test_pickled_objects_are_refused_by_the_bundle(
    knob: str, trained_wgan: Callable[[str], Path], dataset: str, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    folder = shutil.copytree(trained_wgan("compact"), tmp_path / "weights")
    path = folder / ("checkpoint.pt" if knob == "resume" else "model.pt")
    torch.save({"weight": torch.zeros(3), "extra": Payload(proof)}, path)
    knobs: dict[str, Any] = {"ckpt_path": str(path), "output_dir": str(tmp_path / "out")}
    if knob == "inference":
        bundle = workflow("wgan_sn_mp", ["inference"], "infer", **knobs)
    else:
        knobs |= {"ckpt_path": None, "output_dir": str(folder)} if knob == "resume" else {}
        knobs |= {"dataset_dir": dataset, **SMALL_WGAN}
        bundle = workflow("wgan_sn_mp", ["train", "compact"], **knobs)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        bundle.run()
    assert f"{path}: expected a checkpoint of plain tensors" in str(first_data_error(caught.value))
    assert not proof.exists()
