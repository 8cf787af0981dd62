"""The supervised losses compared with references written out by hand."""

import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain, combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from support.synthetic import random_catalog, small_policy
from torch import Tensor

from genrec.config import Loss, Sft
from genrec.errors import InputError
from genrec.learning.sft.batches import DenseExamples, Epochs, RowExamples
from genrec.learning.sft.losses import SftLoss, hardest_sum, rare_items, weighted_units
from genrec.learning.sft.trainer import SftTrainer

NAMES = ("focal", "hard", "rare")
CHOICES = [*chain.from_iterable(combinations(NAMES, size) for size in range(4))]
LENGTHS = (6, 4)


class NoCheckpoints:
    """Keeps the steps at which something was to be saved."""

    def __init__(self, steps: list[int]) -> None:
        self._steps = steps

    def latest(self) -> Any:
        return nullcontext(None)

    def save(self, write: object, metrics: Mapping[str, Any]) -> None:
        self._steps.append(metrics["step"])


def weighted(loss_ML: Tensor, logp_ML: Tensor, rare_M: Tensor, settings: Loss) -> Tensor:
    return hardest_sum(weighted_units(loss_ML, logp_ML, rare_M, settings), settings)


def by_hand(logits_MLK: Tensor, codes_ML: Tensor, rare_M: Tensor, settings: Loss) -> Tensor:
    units: list[Tensor] = []
    for row, codes in enumerate(codes_ML.tolist()):
        chances = [
            logits_MLK[row, level].exp()[code] / logits_MLK[row, level].exp().sum() for level, code in enumerate(codes)
        ]
        if settings.unit == "item":
            chances = [math.prod(chances[1:], start=chances[0])]
        for chance in chances:
            loss = -chance.log()
            if "focal" in settings.weights:
                loss = settings.focal_alpha * (1 - chance) ** settings.focal_gamma * loss
            if "rare" in settings.weights and rare_M[row]:
                loss = settings.rare_weight * loss
            units.append(loss)
    if "hard" in settings.weights:
        kept = sorted(units, key=torch.Tensor.item, reverse=True)[: math.ceil(settings.hard_share * len(units))]
        return len(units) * sum(kept[1:], start=kept[0]) / len(kept)
    return sum(units[1:], start=units[0])


@pytest.mark.parametrize("unit", ["token", "item"])
@pytest.mark.parametrize("chosen", CHOICES, ids="+".join)
def test_every_weight_and_their_products_are_what_their_formulas_say(chosen: tuple[str, ...], unit: str) -> None:
    torch.manual_seed(0)
    settings = Loss(weights=chosen, unit=unit, focal_gamma=1.5, focal_alpha=0.25)  # type: ignore[arg-type]
    ours = torch.randn(7, 3, 5, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    codes_ML, rare_M = torch.randint(5, (7, 3)), torch.rand(7) < 0.4
    logp_ML = ours.log_softmax(-1).gather(-1, codes_ML[..., None])[..., 0]
    loss, reference = weighted(-logp_ML, logp_ML, rare_M, settings), by_hand(theirs, codes_ML, rare_M, settings)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-9)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_forced_code_has_loss_0_and_a_finite_gradient() -> None:
    logp_ML = torch.zeros(2, 1, requires_grad=True)
    loss = weighted(-logp_ML, logp_ML, torch.zeros(2, dtype=torch.bool), Loss(weights=("focal",), focal_gamma=0.5))
    loss.backward()
    assert loss.item() == 0
    assert logp_ML.grad is not None
    assert logp_ML.grad.isfinite().all()


@pytest.mark.parametrize("unit", ["token", "item"])
@pytest.mark.parametrize("softmax", ["trie", "level", "vocabulary"])
def test_whole_sequences_and_rows_give_the_same_loss_and_gradients(softmax: str, unit: str) -> None:
    catalog = random_catalog(40, (5, 5, 5))
    settings = Loss(weights=NAMES, unit=unit)  # type: ignore[arg-type]
    sequences = pa.table({"items": [list(range(n)) for n in LENGTHS], "split": [[0] + [1] * (n - 1) for n in LENGTHS]})
    places = [t for n in LENGTHS for t in range(1, n)]
    rows = pa.table({"history": [list(range(t)) for t in places], "target": places})
    found = []
    for batch in (DenseExamples(sequences, 6).take(np.arange(2)), RowExamples(rows).take(np.arange(8))):
        policy, prompts = small_policy(catalog)
        rare_N = torch.arange(40) < 3
        loss = SftLoss(prompts, catalog, softmax=softmax, smoothing=0.1, weights=settings, rare_N=rare_N)
        value = loss(policy, batch)
        value.backward()
        found.append((value.item(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for whole, row in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(whole, row, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_each_softmax_is_over_what_it_names() -> None:
    catalog = random_catalog(40, (5, 5, 5))
    policy, prompts = small_policy(catalog)
    batch = RowExamples(pa.table({"history": [[1, 2]], "target": [7]})).take(np.arange(1))
    tokens_BP, _ = prompts.encode([[1, 2]])
    codes = catalog.codes_NL[7]
    tokens = policy.sids.tokens(codes)
    logits = policy.model(input_ids=torch.cat([tokens_BP[0], tokens])[None]).logits[0, tokens_BP.shape[1] - 1 :]
    for softmax in ("trie", "level", "vocabulary"):
        expected = 0.0
        for level in range(3):
            same = (catalog.codes_NL[:, :level] == codes[:level]).all(-1)
            over = {
                "trie": policy.sids.token(level, catalog.codes_NL[same, level].unique()),
                "level": policy.sids.token(level, torch.arange(5)),
                "vocabulary": torch.arange(logits.shape[-1]),
            }[softmax]
            expected += float(logits[level, over].logsumexp(0) - logits[level, tokens[level]])
        loss = SftLoss(prompts, catalog, softmax=softmax)
        assert loss(policy, batch).item() == pytest.approx(expected, rel=1e-4)


def test_rare_items_make_up_their_share_of_the_targets_and_ties_stay_together() -> None:
    counts_N = torch.tensor([50, 0, 10, 5, 5, 30])
    assert rare_items(counts_N, 0.05).tolist() == [False, True, False, True, True, False]
    assert rare_items(counts_N, 0.2).tolist() == [False, True, True, True, True, False]
    assert rare_items(counts_N, 1.0).all()
    assert rare_items(torch.full((4,), 3), 0.2).all()


@pytest.mark.parametrize(("lr", "clip", "section"), [(1e12, 1e9, "learning.sft"), (1e12, 1e9, "learning.stages.x")])
def test_supervised_training_that_diverges_stops_with_the_step_the_batch_and_the_remedy(
    lr: float, clip: float, section: str
) -> None:
    catalog = random_catalog(40, (5, 5, 5))
    policy, prompts = small_policy(catalog)
    rows = {"id": range(70, 90), "history": [[i, i + 1] for i in range(20)], "target": range(20)}
    epochs = Epochs(RowExamples(pa.table(rows)), 10, seed=0)
    saved: list[int] = []
    trainer = SftTrainer(
        policy,
        SftLoss(prompts, catalog),
        epochs,
        Sft(example_format="rows", epochs=9, lr=lr, clip=clip, warmup=0.0, weight_decay=0.0),
        seed=0,
        accelerator=Accelerator(cpu=True),
        checkpoints=NoCheckpoints(saved),
        validate=lambda _: {"ndcg@10": 0.0},
        section=section,
    )
    figure = r"step (\d+): got a (loss|gradient norm) of (nan|inf)"
    message = rf"{figure}.*query \d\d.*and 2 more; lower {section}\.lr=1e\+12"
    with pytest.raises(InputError, match=message) as found:
        trainer.run()
    step = int(str(found.value).split()[1].rstrip(":"))
    assert set(epochs.names(step - 1)[:8]) <= set(re.findall(r"query \d+", str(found.value)))
    assert all(done < step for done in saved)
