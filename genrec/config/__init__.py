"""The typed configuration: defaults < YAML files, left to right < ``dotted.key=value`` overrides.

Merging is OmegaConf's; types and ranges are pydantic's. An unknown key is an error that names the file it came
from and the nearest key that exists. Nothing here imports torch, so ``--show`` answers at once.
"""

from genrec.config.data import Data, Embed, Filters
from genrec.config.learning import Grpo, Learning, Loss, Rewards, RewardSettings, Sft
from genrec.config.policy import Lora, Policy
from genrec.config.root import Config, known_keys, load_config, to_yaml
from genrec.config.running import Bench, Compute, Decode, Evaluation, Tune
from genrec.config.section import Section
from genrec.config.sid import Sid
from genrec.config.tasks import Instruction, Stage, Stages, Task, Tasks, Teacher

__all__ = [
    "Bench",
    "Compute",
    "Config",
    "Data",
    "Decode",
    "Embed",
    "Evaluation",
    "Filters",
    "Grpo",
    "Instruction",
    "Learning",
    "Lora",
    "Loss",
    "Policy",
    "RewardSettings",
    "Rewards",
    "Section",
    "Sft",
    "Sid",
    "Stage",
    "Stages",
    "Task",
    "Tasks",
    "Teacher",
    "Tune",
    "known_keys",
    "load_config",
    "to_yaml",
]
