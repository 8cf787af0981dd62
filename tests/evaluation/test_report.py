import json
import re
import warnings
from html import unescape

import numpy as np
import pyarrow as pa
import pytest
from markupsafe import escape
from support.shop_texts import SHOPS_TEXTS
from support.sid_worlds import sequences

from genrec.errors import InputError
from genrec.evaluation.report.page import text_table, write_report
from genrec.evaluation.slices import sid_use
from genrec.evaluation.summary import Rankings, add_gain, summarise
from genrec.sid.health import measure
from genrec.sid.health_page import plain_label, write_page

ITEMS, QUERIES = 40, 200
PAIRS_NL = np.stack([np.arange(ITEMS) // 10, np.arange(ITEMS) // 2], axis=1)
"""SIDs of two levels: ten items share the first code, two all of them."""


def ranking(targets, hit_share, seed, k=20):
    """Random rankings whose first place is the target for a share of the queries."""
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(ITEMS)[:k] for _ in targets])
    hits = rng.random(len(targets)) < hit_share
    ranked[hits] = np.stack([np.r_[t, np.setdiff1d(np.arange(ITEMS), t)[: k - 1]] for t in targets])[hits]
    return ranked


def rankings(model=0.8, knn=0.3, **more):
    targets = np.random.default_rng(9).integers(0, ITEMS, QUERIES)
    baselines = {"popularity": ranking(targets, 0.1, 1), "itemknn": ranking(targets, knn, 2)}
    counts = np.arange(ITEMS)
    return Rankings(targets, ranking(targets, model, 3), baselines, PAIRS_NL, counts, **more)


def test_the_summary_has_the_documented_form_and_is_json():
    targets = rankings().targets_Q
    stages = {"sft": {"wall_s": 3.0, "peak_rss_mb": 100.0}}
    result = summarise(rankings(policies={"sft": ranking(targets, 0.5, 4)}), resamples=50, stages=stages)
    result = json.loads(json.dumps(result))
    assert set(result["model"]) == {"item", "sid"}
    assert set(result["baselines"]) == {"popularity", "itemknn"}
    assert set(result["model"]["item"]) == {f"{m}@{k}" for m in ("hr", "ndcg") for k in (1, 3, 5, 10, 20, 50)}
    low, high = result["ci95"]["model"]["item"]["ndcg@10"]
    assert low < result["model"]["item"]["ndcg@10"] < high
    assert low < high
    assert len(result["ci95"]["baselines"]["itemknn"]["hr@10"]) == 2
    assert result["stages"] == stages
    assert set(result["paired"]) == {"popularity", "itemknn", "sft"}
    assert result["sft"]["item"]["hr@10"] < result["model"]["item"]["hr@10"]
    assert result["model"]["sid"]["hr@10"] >= result["model"]["item"]["hr@10"]


def test_a_headline_that_the_model_leads_has_the_best_baselines_figures():
    result = summarise(rankings(), resamples=100)
    assert result["headline"].startswith("The model leads every baseline: NDCG@10")
    assert "of ItemKNN" in result["headline"]
    assert "excludes zero" in result["headline"]
    assert result["baseline_wins"] == {}


def test_a_baseline_that_wins_is_named_first_with_figures_and_interval():
    result = summarise(rankings(model=0.2, knn=0.7), resamples=100)
    assert result["headline"].startswith("A baseline wins: the model has NDCG@10")
    assert f"{result['baselines']['itemknn']['ndcg@10']:.4f} of ItemKNN" in result["headline"]
    assert "excludes zero" in result["headline"]
    assert result["baseline_wins"]["ndcg@10"] == "itemknn"


def test_a_loss_within_the_noise_is_still_a_loss_and_the_interval_says_so():
    base = rankings(model=0.3, knn=0.3)
    knn = base.model_QK.copy()
    row = int(np.flatnonzero(knn[:, 0] != base.targets_Q)[0])
    knn[row, 0] = base.targets_Q[row]
    result = summarise(Rankings(base.targets_Q, base.model_QK, {"itemknn": knn}, PAIRS_NL, np.ones(ITEMS, int)))
    assert result["headline"].startswith("A baseline wins")
    assert "includes zero" in result["headline"]


def test_prefixes_of_every_ranking_are_summarised_and_shown_in_the_report(tmp_path):
    result = json.loads(json.dumps(summarise(rankings(), resamples=50)))
    assert set(result["prefix"]) == set(result["ci95"]["prefix"]) == {"model", "popularity", "itemknn"}
    for name in result["prefix"]:
        values = result["prefix"][name]
        assert set(values) == {f"prefix@{level}@{k}" for level in (1, 2) for k in (1, 3, 5, 10, 20, 50)}
        low, high = result["ci95"]["prefix"][name]["prefix@1@1"]
        assert low <= values["prefix@1@1"] <= high
    model = result["prefix"]["model"]
    assert model["prefix@1@1"] > model["prefix@2@1"] >= result["model"]["item"]["hr@1"]
    assert result["model"]["item"]["hr@10"] <= model["prefix@2@10"] <= result["model"]["sid"]["hr@10"]
    page = write_report(tmp_path, result).read_text(encoding="utf-8")
    part = page[page.index("<h2>Right prefixes") : page.index("<h2>By popularity")]
    assert re.findall(r"PREFIX@\d@\d+", part) == ["PREFIX@1@10", "PREFIX@2@10", "PREFIX@1@50", "PREFIX@2@50"]
    cells = [f"{result['prefix']['itemknn'][f'prefix@{level}@10']:.4f}" for level in (1, 2)]
    assert re.search(rf"ItemKNN, tuned</td>\s*<td[^>]*>{cells[0]}.*\s*<?.*{cells[1]}", part)


def test_an_empty_test_split_is_refused():
    empty = Rankings(np.zeros(0, int), np.zeros((0, 5), int), {}, np.arange(3)[:, None], np.ones(3, int))
    with pytest.raises(InputError, match="test split empty"):
        summarise(empty)


def test_without_resamples_there_are_figures_but_no_intervals(tmp_path):
    result = summarise(rankings(), resamples=0)
    assert result["ci95"]["model"]["item"] == {}
    assert write_report(tmp_path, result).is_file()


def test_the_page_begins_with_the_headline_escapes_titles_and_loads_nothing_from_outside(tmp_path):
    result = summarise(rankings(model=0.2, knn=0.7), resamples=20, stages={"sft": {"wall_s": 1.0, "peak_rss_mb": 5.0}})
    points = [{"step": s, "loss": 1 / (s + 1), "ndcg@10": None if s % 2 else 0.1, "lr": 1e-3} for s in range(60)]
    page = write_report(
        tmp_path,
        result,
        curves={"sft": points, "grpo": [{"step": 1, "reward": 0.5, "kl": None}]},
        sid_stats=sid_use(np.array([[0, 1], [1, 1]]), (2, 2)),
        samples=[{"history": ["<b>soap</b>"], "recommended": ["tea", "salt"], "target": "salt", "rank": 2}],
        config_text="name: demo",
        title="demo",
    ).read_text(encoding="utf-8")
    body = re.sub(r"<[^>]+>", "", page[page.index("<body>") :]).strip()
    assert body.startswith("A baseline wins")
    assert "&lt;b&gt;soap&lt;/b&gt;" in page
    assert '<li class="hit">salt</li>' in page
    assert "Training loss" in page
    assert "Mean reward" in page
    assert "KL to the SFT policy" not in page
    assert page.count("<svg") == 4
    assert not re.findall(r'(?:src|href)="(?!#)(?!https?://www\.w3\.org)[^"]*"', page.replace("xlink:href", "href"))
    assert "<script" not in page


def test_the_page_is_the_same_bytes_for_the_same_summary(tmp_path):
    result = summarise(rankings(), resamples=20)
    first = write_report(tmp_path / "a", result).read_bytes()
    assert write_report(tmp_path / "b", result).read_bytes() == first


def test_the_text_table_begins_with_the_headline_and_stars_the_best_of_each_column():
    result = summarise(rankings(), resamples=20)
    table = text_table(result)
    assert table.splitlines()[0] == result["headline"]
    model = next(line for line in table.splitlines() if line.startswith("Model "))
    assert f"{result['model']['item']['ndcg@10']:.4f}*" in model


def summary_of(model, *baselines):
    """The summary of rankings given by the ranks of their targets (0: not found); the target is always item 0."""

    def ranked(ranks):
        return np.array([[0 if place == rank else place for place in range(1, 11)] for rank in ranks])

    names = {f"b{number}": ranked(ranks) for number, ranks in enumerate(baselines)}
    targets = np.zeros(len(model), int)
    return summarise(Rankings(targets, ranked(model), names, np.arange(11)[:, None], np.ones(11, int)), resamples=200)


FIRST, SECOND, NONE = [1] * 40, [2] * 40, [0] * 40


@pytest.mark.parametrize(
    ("model", "baselines", "opening"),
    [
        (FIRST, [FIRST], "The model is level with the best baseline: NDCG@10"),
        (NONE, [NONE], "The model is level with the best baseline"),
        (FIRST, [SECOND], "The model is behind no baseline, and level with one"),
        (FIRST, [NONE, NONE], "The model leads every baseline"),
        (SECOND, [FIRST], "A baseline wins: the model has NDCG@10 0.6309 against 1.0000 of b0"),
        ([1] + [0] * 39, [NONE], "The model is ahead of every baseline, within the noise on NDCG@10 and HR@10"),
        ([1] * 20 + [0] * 20, [[0] * 21 + [1] * 19], "The model is ahead of every baseline, within the noise on"),
    ],
)
def test_a_headline_claims_no_more_than_the_figures(model, baselines, opening):
    result = summary_of(model, *baselines)
    assert result["headline"].startswith(opening)
    assert bool(result["baseline_wins"]) == opening.startswith("A baseline wins")


def test_a_metric_that_is_level_is_no_lead_beside_one_that_is_lost():
    assert "it is level on HR@10 1.0000 against 1.0000" in summary_of(SECOND, FIRST)["headline"]


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_few_queries_have_no_interval_and_nothing_leads(tmp_path, queries):
    result = summary_of([1] * queries, [0] * queries)
    add_gain(result, {"ndcg@10": np.ones(queries)}, {"ndcg@10": np.zeros(queries)}, 100, 0)
    assert result["ci95"]["model"]["item"] == {} and result["paired"]["b0"] == {}
    assert "leads" not in result["headline"] and "excludes zero" not in result["headline"]
    assert result["headline"].endswith("GRPO changed the SFT policy's NDCG@10 by +1.0000 (no interval).")
    page = write_report(tmp_path, result).read_text(encoding="utf-8")
    assert "There are no intervals" in page and "Paired differences" not in page and 'class="headline"' in page


def test_rankings_that_are_equal_on_every_query_are_not_called_worse(tmp_path):
    page = write_report(tmp_path, summary_of(FIRST, FIRST)).read_text(encoding="utf-8")
    assert "0.0%</td>" not in page.split("Paired differences")[1].split("At semantic-ID level")[0]


def test_any_text_of_a_shop_can_stand_in_the_report_and_on_the_health_page(tmp_path):
    texts = list(SHOPS_TEXTS.values())
    everything, n = " | ".join(texts), len(texts)
    samples = [{"history": texts, "recommended": texts, "target": everything, "rank": 1}]
    items = pa.table({"title": texts, "brand": texts, "categories": [["shop", text] for text in texts]})
    codes_NL = np.stack([np.arange(n) % 3, np.arange(n) // 3], axis=1).astype(np.int32)
    health = {**measure(codes_NL, codes_NL, (3, 4), sequences([(0, 1), (1, 1)])), "warnings": [everything]}
    options = {"samples": samples, "config_text": everything, "title": everything}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = write_report(tmp_path, summarise(rankings(), resamples=0), **options).read_text("utf-8")
        write_page(items, codes_NL, health, tmp_path / "health.html")
    page = (tmp_path / "health.html").read_text("utf-8")
    figure = unescape(page.split("Level-1 codes by category")[1].split("Sample prefixes")[0])
    for text in texts:
        assert str(escape(text)) in report and str(escape(text)) in page
        assert plain_label(text) in figure
    assert "<script>" not in report + page and "\x1b" not in figure
