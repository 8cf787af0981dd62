"""The typed configuration: defaults < YAML files, left to right < ``dotted.key=value`` overrides.

Merging is OmegaConf's; types and ranges are pydantic's. An unknown key is an error that names the file it came
from and the nearest key that exists. Nothing here imports torch, so ``--show`` answers at once.
"""

from genrec.config.baselines import (
    COUNTED_BASELINES,
    SID_BASELINES,
    BaselineName,
    Baselines,
    Bert4recSettings,
    BsarecSettings,
    Gru4recSettings,
    HstuSettings,
    NetworkSettings,
    SasrecBceSettings,
    SasrecSettings,
    SequentialSettings,
    TigerSettings,
)
from genrec.config.data import Data, Embed, Filters
from genrec.config.judge import ChatServer, Judge
from genrec.config.learning import Learning, Rewards, RewardSettings, Rl, Update
from genrec.config.loading import known_keys, load_config, to_yaml
from genrec.config.packaged import packaged_file, packaged_names
from genrec.config.policy import EventContext, Items, Lora, PolicyConfig
from genrec.config.root import Config
from genrec.config.running import BenchConfig, Compute, Decode, Evaluation, Serve
from genrec.config.section import Section
from genrec.config.sid import Sid
from genrec.config.supervised import Loss, Sft
from genrec.config.tasks import Instruction, Stages, StageSettings, Tasks, TaskWeight, Teacher
from genrec.config.tune import Dimension, Tune

__all__ = [
    "COUNTED_BASELINES",
    "SID_BASELINES",
    "BaselineName",
    "Baselines",
    "BenchConfig",
    "Bert4recSettings",
    "BsarecSettings",
    "ChatServer",
    "Compute",
    "Config",
    "Data",
    "Decode",
    "Dimension",
    "Embed",
    "Evaluation",
    "EventContext",
    "Filters",
    "Gru4recSettings",
    "HstuSettings",
    "Instruction",
    "Items",
    "Judge",
    "Learning",
    "Lora",
    "Loss",
    "NetworkSettings",
    "PolicyConfig",
    "RewardSettings",
    "Rewards",
    "Rl",
    "SasrecBceSettings",
    "SasrecSettings",
    "Section",
    "SequentialSettings",
    "Serve",
    "Sft",
    "Sid",
    "StageSettings",
    "Stages",
    "TaskWeight",
    "Tasks",
    "Teacher",
    "TigerSettings",
    "Tune",
    "Update",
    "known_keys",
    "load_config",
    "packaged_file",
    "packaged_names",
    "to_yaml",
]
