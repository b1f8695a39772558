"""A federation of three sites, simulated on one machine; ``recipe.export`` writes a real job.

python job.py BUNDLE INITIAL.pt KNOBS_1.json KNOBS_2.json KNOBS_3.json: whole paths.
"""

import sys

from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from nvflare.recipe.utils import set_per_site_config

bundle, initial, *knobs = sys.argv[1:]
sites = {f"site-{i}": {"train_args": f"{bundle} {path} 1"} for i, path in enumerate(knobs, 1)}
recipe = FedAvgRecipe(
    name="medpair",
    min_clients=len(sites),
    num_rounds=6,
    model_persistor=PTFileModelPersistor(source_ckpt_file_full_name=initial),
    train_script="client.py",
)
set_per_site_config(recipe, sites)
print(recipe.execute(SimEnv(clients=list(sites), num_threads=1)).get_result())
