"""Policies from scratch."""

from collections.abc import Callable

import pytest
from support.synthetic import random_catalog
from torch import Tensor, nn

from genrec.config import PolicyConfig
from genrec.policy.backbone import build
from genrec.policy.decoding.tree import prompt_mask, prompt_positions

RESIDUALS = {"gpt2": ("resid_dropout", "mlp.dropout"), "qwen3": ("o_proj", "down_proj")}
"""Modules whose outputs are added to the residual stream."""


@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
def test_both_families_drop_embeddings_and_residuals_in_training_alone(arch: str) -> None:
    shape = {"arch": arch, "hidden": 64, "layers": 2, "heads": 2, "dropout": 0.5}
    policy, prompts = build(PolicyConfig.model_validate(shape), random_catalog(40, (8, 8, 8)), max_history=6, seed=0)
    zeros: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            zeros[name] = float((output == 0).float().mean())

        return hook

    layers = next(module for module in policy.model.modules() if isinstance(module, nn.ModuleList))
    layers[0].register_forward_pre_hook(lambda module, inputs: watch("embeddings")(module, None, inputs[0]))
    names = [name for name, _ in layers.named_modules() if name.endswith(RESIDUALS[arch])]
    for name in names:
        layers.get_submodule(name).register_forward_hook(watch(name))
    tokens_BP, mask_BP = prompts.encode([[1, 2, 3, 4, 5, 6]] * 8)
    for training in (True, False):
        zeros.clear()
        policy.train(training).hidden(tokens_BP, prompt_positions(mask_BP), prompt_mask(mask_BP))
        assert zeros.keys() == {"embeddings", *names} and len(names) == 4
        low, high = (0.4, 0.6) if training else (-1.0, 0.05)
        assert all(low < share < high for share in zeros.values()), zeros
