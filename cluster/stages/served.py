"""served: with which weights the SFT policy would be served, so that rewards can be paid on what is served.

They are tuned on validation as the evaluation tunes them for the policy that it tests; no test query is read.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact
from cluster.policy_predictor import PolicyPredictor, tuned_baselines
from cluster.stages.plan import Plan, StageRun
from genrec.config import Config
from genrec.data.readers import read_queries

LOG = logging.getLogger(__name__)


def plan(run: StageRun) -> Plan:
    """Tune the weights of item head and prior, and ItemKNN's settings, on validation."""
    config = run.config
    settings = {
        "decode": config.decode.search_settings(),
        "counted": config.baselines.counted,
        "max_history": config.data.max_history,
        "seed": config.seed,
    }
    return Plan(settings, partial(_tune, config, run.inputs))


def _tune(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Mapping[str, Any]:
    from genrec.inference.batch import KnnPrior
    from genrec.inference.served_search import ServedWeights

    data = inputs["prepare"].path
    suite = tuned_baselines(config, data)
    found = PolicyPredictor(config, inputs, "sft", suite, out / "predictions").tuned(read_queries(data, "valid"))
    weights = ServedWeights(found.head_weight, found.weight, KnnPrior(suite.itemknn.settings, suite.mask_seen))
    if weights.adds_nothing:
        LOG.warning(
            "validation gives item head and prior no weight, so what is served is the policy alone; "
            "learning.rl.served=true changes nothing"
        )
    weights.write(out)
    shutil.rmtree(out / "predictions", ignore_errors=True)
    return found.as_json()
