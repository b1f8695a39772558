"""``--tracking mlflow`` in every bundle, training and inference; a server that is down."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
    run,
)

mlflow = pytest.importorskip("mlflow", reason="needs the extra [mlflow]")
pytest.importorskip("sqlalchemy", reason="needs the extra [mlflow]: the database of runs")

# how to train each bundle for two steps, and to use what it has learnt for one volume
ONE_EPOCH = {"max_epochs": 1, "iterations_per_epoch": 2}
TRAINING = {
    "wgan_sn_mp": SMALL_WGAN,
    "unet_segmentation": SMALL_UNET,
    "medgen3d_mcdpm": SMALL_MCDPM,
    "medgen3d_vid2vid": SMALL_VID2VID,
    "medgen3d_semantic_refiner": SMALL_REFINER,
}
INFERENCE: dict[str, dict[str, Any]] = {
    "wgan_sn_mp": {"num_samples": 1},
    "unet_segmentation": {"split": "validation"},
    "medgen3d_mcdpm": {"num_samples": 1, "steps": 2},
    "medgen3d_vid2vid": {"num_samples": 1},
    "medgen3d_semantic_refiner": {"num_samples": 1, "refine_steps": 1},
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return one database for all bundles: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


def the_run(database: str, experiment: str) -> Any:
    client = mlflow.MlflowClient(database)
    found = client.get_experiment_by_name(experiment)
    (only,) = client.search_runs(found.experiment_id)
    return client, only


@pytest.mark.parametrize("bundle", TRAINING)
def test_training_and_inference_are_tracked(
    bundle: str, database: str, dataset: str, tmp_path: Path
) -> None:
    # MONAI writes the executed config as JSON
    tracked = {"tracking": "mlflow", "tracking_uri": database, "device": "cpu"}
    run(
        bundle,
        ["train"],
        dataset_dir=dataset,
        output_dir=str(tmp_path / "run"),
        experiment_name=f"{bundle}_training",
        **{**TRAINING[bundle], **ONE_EPOCH, **tracked},
    )
    client, training = the_run(database, f"{bundle}_training")
    assert training.info.status == "FINISHED"
    assert training.data.params["max_epochs"] == "1"
    losses = client.get_metric_history(training.info.run_id, "train_loss")
    assert [point.step for point in losses] == [1, 2]
    assert all(math.isfinite(point.value) for point in losses)
    if bundle == "unet_segmentation":
        assert 0 <= training.data.metrics["val_mean_dice"] <= 1
    run(
        bundle,
        ["inference"],
        "infer",
        dataset_dir=dataset,
        ckpt_path=str(tmp_path / "run" / "model.pt"),
        output_dir=str(tmp_path / "made"),
        experiment_name=f"{bundle}_inference",
        **{**INFERENCE[bundle], **tracked},
    )
    _, inference = the_run(database, f"{bundle}_inference")
    assert inference.info.status == "FINISHED"
    assert list((tmp_path / "made").rglob("*.nii.gz"))


def test_a_server_that_is_down_is_warned_of(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(
        "wgan_sn_mp",
        ["train"],
        dataset_dir=dataset,
        output_dir=str(tmp_path),
        tracking="mlflow",
        tracking_uri="http://127.0.0.1:1",
        device="cpu",
        **{**SMALL_WGAN, **ONE_EPOCH},
    )
    warnings = [r.getMessage() for r in caplog.records if r.name == "medpair.engines.tracking"]
    assert len(warnings) == 1
    assert "tracking: expected to reach http://127.0.0.1:1" in warnings[0]
    assert (tmp_path / "model.pt").exists()
