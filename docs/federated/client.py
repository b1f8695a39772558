"""One site of a federation: MONAI's client of a bundle, driven by NVIDIA FLARE.

python client.py BUNDLE KNOBS.json LOCAL_EPOCHS: started by FLARE at each site (see job.py).
"""

import json
import sys

import nvflare.client as flare
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject

bundle, knobs_file, local_epochs = sys.argv[1:]
with open(knobs_file) as handle:  # what the sites agreed on, dataset_dir and output_dir
    knobs = json.load(handle)
with open(f"{knobs['dataset_dir']}/dataset.json") as handle:
    cases = len(json.load(handle)["training"])

algo = MonaiAlgo(
    bundle_root=bundle,
    local_epochs=int(local_epochs),
    send_weight_diff=False,
    config_train_filename=["configs/train.json", "configs/federated.json"],
    train_kwargs=knobs,
    config_evaluate_filename=None,
)
flare.init()
algo.initialize({"fl_client_name": flare.get_site_name()})
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    algo.train(ExchangeObject(weights=model.params))
    weights = algo.get_weights().weights
    flare.send(flare.FLModel(params=weights, meta={"NUM_STEPS_CURRENT_ROUND": cases}))
algo.finalize()
