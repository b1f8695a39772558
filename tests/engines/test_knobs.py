"""Misspelt knobs are refused by name, on the command line and in overlays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fire.parser import DefaultParseValue
from tests.bundles.conftest import BUNDLES
from tests.engines.test_overrides import OVER_INFERENCE

from medpair.data.files import DataError
from medpair.engines.knob_numbers import refuse_wrong_numbers
from medpair.engines.knobs import refuse_misread_texts, refuse_unknown_knobs

RUNNER = ["/venv/lib/monai/bundle/__main__.py", "run"]
PRESETS = sorted(
    (path.parents[1].name, path.stem)
    for path in BUNDLES.glob("*/configs/*.json")
    if path.stem not in ("train", "inference", "metadata", "logging")
)


def config(bundle: str, name: str) -> str:
    return str(BUNDLES / bundle / "configs" / f"{name}.json")


@pytest.mark.parametrize("bundle", sorted(path.name for path in BUNDLES.iterdir()))
def test_a_misspelt_knob_is_refused_with_the_nearest(bundle: str) -> None:
    words = [*RUNNER, "--config_file", config(bundle, "train"), "--bundle_root", "x"]
    refuse_unknown_knobs([*words, "--max_epochs", "3", "--device=cpu"])
    message = r"--max_epoch: expected a knob of train.json, .* did you mean max_epochs\?"
    with pytest.raises(DataError, match=message):
        refuse_unknown_knobs([*words, "--max_epoch", "3"])
    with pytest.raises(DataError, match="--dataset_folder"):
        refuse_unknown_knobs([*words, "--dataset_folder=x"])


@pytest.mark.parametrize(("bundle", "preset"), PRESETS)
def test_every_overlay_of_ours_is_accepted_and_a_wrong_entry_is_not(
    bundle: str, preset: str, tmp_path: Path
) -> None:
    first = "inference" if preset in OVER_INFERENCE else "train"
    both = f"['{config(bundle, first)}','{config(bundle, preset)}']"
    refuse_unknown_knobs([*RUNNER, "--config_file", both])
    wrong = tmp_path / "mine.json"
    wrong.write_text(json.dumps({**json.loads(Path(config(bundle, preset)).read_text()), "sed": 1}))
    both = f"['{config(bundle, first)}','{wrong}']"
    with pytest.raises(DataError, match=r"mine.json: sed: .* did you mean seed\?"):
        refuse_unknown_knobs([*RUNNER, "--config_file", both])


def test_what_an_overlay_brings_and_uses_is_a_knob() -> None:
    files = [config("wgan_sn_mp", name) for name in ("train", "compact", "wgan_dp")]
    words = [*RUNNER, "--config_file", str(files), "--target_epsilon", "3"]
    refuse_unknown_knobs([*words, "--train#trainer#max_epochs", "2", "--run-id", "run"])
    with pytest.raises(DataError, match="did you mean target_epsilon"):
        refuse_unknown_knobs([*words, "--target_epsilom", "3"])
    # without the overlay it is none
    words = [*RUNNER, "--config_file", files[0], "--target_epsilon", "3"]
    with pytest.raises(DataError, match=r"target_epsilon: expected a knob of train\.json"):
        refuse_unknown_knobs(words)


def test_other_programs_are_left_alone(tmp_path: Path) -> None:
    refuse_unknown_knobs(["pytest", "--config_file", "nothing", "--strange", "1"])
    refuse_unknown_knobs([RUNNER[0], "download", "--strange", "1"])
    yaml = tmp_path / "train.yaml"
    yaml.write_text("a: 1")
    refuse_unknown_knobs([*RUNNER, "--config_file", str(yaml), "--strange", "1"])


def test_arguments_from_a_file_count_as_given(tmp_path: Path) -> None:
    arguments = tmp_path / "args.json"
    content = {"config_file": config("wgan_sn_mp", "inference"), "num_sampels": 8}
    arguments.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"num_sampels: .* did you mean num_samples"):
        refuse_unknown_knobs([*RUNNER, "--args_file", str(arguments)])


@pytest.mark.parametrize(
    ("key", "word", "read", "form"),
    [
        ("output_dir", "2024_05", "202405", "./2024_05"),
        ("dataset_dir", "cohort#2", "'cohort'", "./cohort#2"),
        ("dataset_dir", "[2024,2025]", "[2024, 2025]", "\"['./2024', './2025']\""),
        ("output_dir", "a,b", "('a', 'b')", "./a,b"),
        ("ckpt_path", "1e5", "100000.0", "./1e5"),
        ("label_group", "4", "4", "\"'4'\""),
    ],
)
def test_text_that_is_read_as_something_else_is_refused(
    key: str, word: str, read: str, form: str
) -> None:
    with pytest.raises(DataError) as refusal:
        refuse_misread_texts([*RUNNER, f"--{key}", word])
    told = f"--{key} {word}: expected text, found what the runner reads as {read}; "
    assert str(refusal.value) == f"{told}write --{key} {form}"
    # and what it says to write is read as that text; the shell takes the outer quotes
    refuse_misread_texts([*RUNNER, f"--{key}={form.strip(chr(34))}"])


@pytest.mark.parametrize("word", ["runs/2024_05", "None", "my cohort", "['a','b']", "a-1", "C:\\x"])
def test_text_that_is_read_as_it_is_passes(word: str) -> None:
    refuse_misread_texts([*RUNNER, "--dataset_dir", word, "--max_epochs", "3"])


def test_a_folder_read_as_a_number_ends_the_real_command_before_it_writes(tmp_path: Path) -> None:
    words = ["--config_file", config("wgan_sn_mp", "inference"), "--output_dir", "2024_05"]
    words += ["--bundle_root", str(BUNDLES / "wgan_sn_mp")]
    command = [sys.executable, "-m", "monai.bundle", "run", *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("medpair: --output_dir 2024_05: expected text, found what the runner")
    assert not list(tmp_path.iterdir())


def test_the_real_command_ends_with_one_line(tmp_path: Path) -> None:
    words = ["--config_file", config("wgan_sn_mp", "inference"), "--num_sampels", "8"]
    words += ["--bundle_root", str(BUNDLES / "wgan_sn_mp"), "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, "-m", "monai.bundle", "run", *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("medpair: --num_sampels: expected a knob of inference.json")
    assert line.endswith("did you mean num_samples?")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("knob", "word", "expected"),
    [
        ("batch_size", "0", "a whole number of at least 1"),
        ("batch_size", "2.5", "a whole number of at least 1"),
        ("max_epochs", "True", "a whole number of at least 1"),
        ("val_interval", "0", "a whole number of at least 1"),
        ("log_interval", "-3", "a whole number of at least 1"),
        ("iterations_per_epoch", "0", "a whole number of at least 1"),
        ("num_workers", "-1", "a whole number of at least 0"),
        ("seed", "-1", "a whole number of at least 0"),
        ("seed", "None", "a whole number of at least 0"),
        ("learning_rate", "-0.1", "a number of at least 0"),
        ("critic_lr", "1e999", "a number of at least 0"),
        ("averaging", "99.9", "a number from 0 to below 1"),
    ],
)
def test_a_number_that_a_knob_cannot_have_is_refused(
    knob: str, word: str, expected: str, tmp_path: Path
) -> None:
    words = [*RUNNER, "--config_file", config("wgan_sn_mp", "train")]
    with pytest.raises(DataError, match=rf"^--{knob}: expected {expected}, found "):
        refuse_wrong_numbers([*words, f"--{knob}", word])
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({knob: DefaultParseValue(word)}))
    both = str([config("wgan_sn_mp", "train"), str(overlay)])
    with pytest.raises(DataError, match=rf"mine\.json: {knob}: expected {expected}, found "):
        refuse_wrong_numbers([*RUNNER, "--config_file", both])


@pytest.mark.parametrize(("bundle", "name"), PRESETS)
def test_the_bundles_own_numbers_and_expressions_pass(bundle: str, name: str) -> None:
    words = ["--config_file", str([config(bundle, "train"), config(bundle, name)])]
    more = ["--batch_size", "$2 * 2", "--max_epochs", "@val_interval", "--iterations_per_epoch"]
    refuse_wrong_numbers([*RUNNER, *words, *more, "None", "--learning_rate=1e-4"])
