import json
import re
import warnings
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from markupsafe import escape
from support.shop_texts import SHOPS_TEXTS
from support.sid_worlds import sequences

from genrec.errors import InputError
from genrec.evaluation.intervals import over_runs
from genrec.evaluation.report.audit import POINTS, training_panels
from genrec.evaluation.report.compare import report_runs
from genrec.evaluation.report.explore import ITEMS as SHOWN
from genrec.evaluation.report.explore import catalog_view, principal_components, shown_items, user_answers
from genrec.evaluation.report.page import text_table, write_report
from genrec.evaluation.slices import sid_use
from genrec.evaluation.summary import Rankings, add_gain, add_prior, summarise
from genrec.evaluation.verdict import plain_words, verdict
from genrec.sid.health import measure
from genrec.sid.health_page import plain_label, write_page
from genrec.sid.train_events import TrainEvents
from genrec.sid.vectors import write_vectors

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
    assert set(result["model"]["item"]) == {f"{m}@{k}" for m in ("hr", "ndcg", "mrr") for k in (1, 3, 5, 10, 20, 50)}
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


def test_a_baseline_that_is_ahead_within_the_noise_is_named_but_does_not_win():
    base = rankings(model=0.3, knn=0.3)
    knn = base.model_QK.copy()
    row = int(np.flatnonzero(knn[:, 0] != base.targets_Q)[0])
    knn[row, 0] = base.targets_Q[row]
    result = summarise(Rankings(base.targets_Q, base.model_QK, {"itemknn": knn}, PAIRS_NL, np.ones(ITEMS, int)))
    assert result["headline"].startswith("A baseline is ahead, within the noise: the model has NDCG@10")
    assert "includes zero" in result["headline"] and result["baseline_wins"]["ndcg@10"] == "itemknn"
    assert verdict(result) == "ItemKNN is ahead of the model, but within the noise."
    assert "no more than chance may give" in plain_words(result)


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
    part = page[page.index("<h2>Right prefixes") : page.index('<h2 id="slices">By popularity')]
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


def test_the_page_begins_with_the_verdict_escapes_titles_and_loads_nothing_from_outside(tmp_path):
    result = summarise(rankings(model=0.2, knn=0.7), resamples=20, stages={"sft": {"wall_s": 1.0, "peak_rss_mb": 5.0}})
    points = [{"step": s, "loss": 1 / (s + 1), "ndcg@10": None if s % 2 else 0.1, "lr": 1e-3} for s in range(60)]
    page = write_report(
        tmp_path,
        result,
        curves={"sft": points, "grpo": [{"step": 1, "reward": 0.5, "kl": None}]},
        sid_stats=sid_use(np.array([[0, 1], [1, 1]]), (2, 2)),
        users=[USER],
        config_text="name: demo",
        title="demo",
    ).read_text(encoding="utf-8")
    body = re.sub(r"<[^>]+>", "", page[page.index('<main id="content">') :]).strip()
    assert body.startswith("ItemKNN beats the model.\nOf 100 users, ")
    assert "&lt;b&gt;soap&lt;/b&gt;" in page
    assert '<li class="hit">salt</li>' in page
    assert "<h4>Training loss</h4>" in page
    assert "<h4>Mean reward</h4>" in page
    assert "KL to the SFT policy" not in page
    assert not re.findall(r'(?:src|href)="(?!#)(?!https?://www\.w3\.org)[^"]*"', page.replace("xlink:href", "href"))


def test_the_page_is_the_same_bytes_for_the_same_summary(tmp_path):
    result = summarise(rankings(), resamples=20)
    first = write_report(tmp_path / "a", result).read_bytes()
    assert write_report(tmp_path / "b", result).read_bytes() == first


def test_the_text_table_begins_with_the_verdict_and_stars_the_best_of_each_column():
    result = summarise(rankings(), resamples=20)
    table = text_table(result)
    assert table.splitlines()[0] == verdict(result) == "The model beats every baseline."
    assert all(len(line) <= 100 for line in table.splitlines()[1:3])
    model = next(line for line in table.splitlines() if line.startswith("Model "))
    assert f"{result['model']['item']['ndcg@10']:.4f}*" in model


def summary_of(model, *baselines, **policies):
    """The summary of rankings given by the ranks of their targets (0: not found); the target is always item 0."""

    def ranked(ranks):
        return np.array([[0 if place == rank else place for place in range(1, 11)] for rank in ranks])

    names = {f"b{number}": ranked(ranks) for number, ranks in enumerate(baselines)}
    others = {name: ranked(ranks) for name, ranks in policies.items()}
    ids, counts = np.arange(11)[:, None], np.ones(11, int)
    every = Rankings(np.zeros(len(model), int), ranked(model), names, ids, counts, policies=others)
    return summarise(every, resamples=200)


USER = {
    "history": ["<b>soap</b>"],
    "earlier": 0,
    "target": "salt",
    "systems": {
        "model": {"recommended": ["tea", "salt"], "rank": 2},
        "itemknn": {"recommended": ["tea", "soap"], "rank": 0},
    },
}
"""A user of the report, whose target the model found."""

FIRST, SECOND, NONE, TEN = [1] * 40, [2] * 40, [0] * 40, [1] * 10 + [2] * 30


@pytest.mark.parametrize(
    ("model", "baselines", "opening"),
    [
        (FIRST, [FIRST], "The model is level with the best baseline: NDCG@10"),
        (NONE, [NONE], "The model is level with the best baseline"),
        (FIRST, [SECOND], "The model is behind no baseline, and level with one"),
        (FIRST, [NONE, NONE], "The model leads every baseline"),
        (SECOND, [FIRST], "A baseline wins: the model has NDCG@10 0.6309 against 1.0000 of b0"),
        (NONE, [[1] + [0] * 39], "A baseline is ahead, within the noise: the model has NDCG@10 0.0000 against 0.0250"),
        ([1] + [0] * 39, [NONE], "The model is ahead of every baseline, within the noise on NDCG@10 and HR@10"),
        ([1] * 20 + [0] * 20, [[0] * 21 + [1] * 19], "The model is ahead of every baseline, within the noise on"),
    ],
)
def test_a_headline_claims_no_more_than_the_figures(model, baselines, opening):
    result = summary_of(model, *baselines)
    assert result["headline"].startswith(opening)
    assert bool(result["baseline_wins"]) == opening.startswith("A baseline")


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
    assert verdict(result) == "The model is ahead of every baseline, but within the noise."
    assert "there are too few queries" in plain_words(result) and "cannot be told" in plain_words(result)


def test_the_markdown_twin_has_the_figures_of_the_page_and_says_which_baselines_failed(tmp_path):
    targets = rankings().targets_Q
    kinds = {"labels": {"repeat": np.array(["new", "repeat"])[targets % 2]}, "event_Q": ["buy", "view"] * 100}
    result = summarise(rankings(policies={"sft": ranking(targets, 0.5, 4)}, **kinds), resamples=20)
    trade = {"sft": 0.0, "rl": 0.5, "difference": 0.5, "low": 0.25, "high": 0.75, "relative": 0.0}
    cost = {"steps": 1, "best_step": 1, "wall_s": 1.0, "sft_wall_s": 1.0, "stopped": ""}
    result["rl_trade"] = {"metrics": {"new_items@10": trade}, "few_events": 4, "cost": cost}
    result["baselines_failed"] = {"als": "the package implicit | <b>is missing</b>"}
    page = write_report(tmp_path, result).read_text("utf-8")
    twin = (tmp_path / "report.md").read_text("utf-8")
    assert "No row of ALS: the package implicit \\| \\<b\\>is missing" in twin and "No row of ALS: the package" in page
    for heading in ("popularity of the target", "repetition", "event type of the target"):
        table = twin.split(f"## By {heading}: HR@10")[1].split("##")[0]
        assert {"Queries", "Model", "SFT policy", "Popularity", "ItemKNN, tuned"} == set(
            re.findall(r"(?m)^\| ([^|]+?) \|", table)
        )
        shown = page.split(f"By {heading}</h2>")[1].split("<h2")[0]
        cells = re.findall(r"0\.\d{4}", table)
        assert len(cells) >= 8 and all(f">{cell}<" in shown for cell in cells)
    assert "| New items@10 | 0.0000 | 0.5000 | +0.5000 | +0.2500 to +0.7500 |" in twin
    assert "+0.2500 to +0.7500</td><td>–</td>" in page, "nothing is divided by zero"
    assert "## Paired differences" in twin
    write_report(tmp_path, summarise(rankings(event_Q=["buy"] * 200), resamples=0))
    for file in ("report.md", "report.html"):
        text = (tmp_path / file).read_text("utf-8")
        assert "Paired differences" not in text and "By event type" not in text, "one type alone tells nothing"


def test_a_difference_has_a_colour_only_where_it_stays_beyond_chance_after_the_correction(tmp_path):
    result = summary_of([1] * 30 + [2] * 10, *[[1] * 24 + [2] * 16] * 12)
    row = result["paired"]["b0"]["ndcg@10"]
    assert row["low"] > 0 and row["p"] < 0.05 < row["p_holm"]

    def first_cell(summary):
        part = write_report(tmp_path, summary).read_text("utf-8").split("Model minus</th>")[1]
        return re.search(r'<td>b0</td>\s*<td class="(\w*)">', part)[1]

    assert first_cell(result) == ""
    assert first_cell(summary_of([1] * 30 + [2] * 10, [1] * 24 + [2] * 16)) == "yes"


def test_rankings_that_are_equal_on_every_query_are_not_called_worse(tmp_path):
    page = write_report(tmp_path, summary_of(FIRST, FIRST)).read_text(encoding="utf-8")
    assert "0.0%</td>" not in page.split("Paired differences")[1].split("At semantic-ID level")[0]


def test_any_text_of_a_shop_can_stand_in_the_report_and_on_the_health_page(tmp_path):
    texts = list(SHOPS_TEXTS.values())
    everything, n = " | ".join(texts), len(texts)
    answer = {"recommended": texts[:5], "rank": 1}
    users = [{"history": texts, "earlier": 0, "target": everything, "systems": {"model": answer}}]
    codes_and_places = [[text, 0.1, 0.2, number % 3, number // 3] for number, text in enumerate(texts)]
    catalog = {"items": n, "axes": "codes", "rows": codes_and_places}
    items = pa.table({"title": texts, "brand": texts, "categories": [["shop", text] for text in texts]})
    codes_NL = np.stack([np.arange(n) % 3, np.arange(n) // 3], axis=1).astype(np.int32)
    health = {
        **measure(codes_NL, codes_NL, (3, 4), TrainEvents.of(sequences([(0, 1), (1, 1)]))),
        "warnings": [everything],
    }
    options = {"users": users, "catalog": catalog, "config_text": everything, "title": everything}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = write_report(tmp_path, summarise(rankings(), resamples=0), **options).read_text("utf-8")
        write_page(lambda rows, names: items.select(names).take(rows), codes_NL, health, tmp_path / "health.html")
    page = (tmp_path / "health.html").read_text("utf-8")
    figure = unescape(page.split("Level-1 codes by category")[1].split("Sample prefixes")[0])
    for text in texts:
        assert str(escape(text)) in report and str(escape(text)) in page
        assert plain_label(text) in figure
    assert "<script>alert" not in report + page and "\x1b" not in figure
    twin = (tmp_path / "report.md").read_text("utf-8")
    assert "\x1b" not in twin and not re.search(r"(?m)^[^ ].*<script>", twin.replace("\\<script\\>", ""))


@pytest.mark.parametrize(
    ("model", "baselines", "said"),
    [
        (FIRST, [NONE, NONE], "The model beats every baseline."),
        (FIRST, [FIRST], "The model is level with the best baseline, b0."),
        (SECOND, [FIRST], "B0 beats the model."),
        (NONE, [[1] + [0] * 39], "B0 is ahead of the model, but within the noise."),
        ([0], [[1]], "B0 is ahead of the model, but within the noise."),
        ([1] + [0] * 39, [NONE], "The model is ahead of every baseline, but within the noise."),
    ],
)
def test_the_verdict_is_one_short_sentence_that_claims_no_more_than_the_figures(model, baselines, said):
    assert verdict(summary_of(model, *baselines)) == said


def test_without_a_baseline_the_verdict_compares_nothing(tmp_path):
    targets = np.zeros(10, int)
    alone = Rankings(targets, np.zeros((10, 1), int), {}, np.arange(11)[:, None], np.ones(11, int))
    result = summarise(alone, resamples=20)
    assert verdict(result) == "No baseline ran, so there is nothing to compare the model with."
    assert plain_words(result) == "Of 100 users, 100.0 find their next item among the model's first ten."
    assert write_report(tmp_path, result).is_file()


def test_a_model_with_a_prior_has_a_report_although_every_baseline_failed(tmp_path):
    ranked = np.zeros((10, 1), int)
    policies = {"policy": ranked}
    alone = Rankings(np.zeros(10, int), ranked, {}, np.arange(11)[:, None], np.ones(11, int), policies=policies)
    result = summarise(alone, resamples=20, details={"prior": {"weight": 0.5}, "baselines_failed": {"als": "no als"}})
    add_prior(result, "policy", 0.5)
    assert result["headline"].startswith("The trained policy alone: NDCG@10 1.0000, HR@10 1.0000. The model is this")
    assert verdict(result).startswith("No baseline ran") and "prior of weight 0.5" in plain_words(result)
    assert "No row of ALS: no als" in write_report(tmp_path, result).read_text("utf-8")


@pytest.mark.parametrize(
    ("policy", "ends", "headline"),
    [
        (SECOND, "alone, the trained policy loses to b0.", "A baseline wins over the trained policy alone:"),
        (
            [1] * 9 + [2] * 31,
            "alone, the trained policy is behind b0, within the noise.",
            "A baseline is ahead of the trained policy alone, within the noise:",
        ),
        (TEN, "alone, the trained policy is level with b0.", "The trained policy alone is behind no baseline:"),
        ([1] * 11 + [2] * 29, "without it, it is ahead within the noise.", "The trained policy alone is behind no"),
        ([1] * 20 + [2] * 20, "without it, it beats every baseline, too.", "The trained policy alone is behind no"),
    ],
)
def test_a_model_with_a_prior_is_not_praised_for_what_the_prior_did(policy, ends, headline):
    result = summary_of(FIRST, TEN, policy=policy)
    result["prior"] = {"weight": 0.5}
    add_prior(result, "policy", 0.5)
    assert verdict(result) == f"The model beats every baseline with ItemKNN's help; {ends}"
    assert "an ItemKNN prior of weight 0.5" in plain_words(result)
    assert result["headline"].startswith(headline) and "(no interval)" not in result["headline"]


@pytest.mark.parametrize(
    ("model", "begins"),
    [
        ([1] * 11 + [2] * 29, "With ItemKNN's help the model is ahead of every baseline, but within the noise; "),
        (TEN, "With ItemKNN's help the model is level with the best baseline, b0; "),
        ([1] * 9 + [2] * 31, "B0 is ahead of the model with ItemKNN's help, but within the noise; "),
        (SECOND, "B0 beats the model even with ItemKNN's help; "),
    ],
)
def test_a_prior_that_did_not_help_enough_is_not_praised_either(model, begins):
    result = summary_of(model, TEN, policy=NONE)
    result["prior"] = {"weight": 0.5}
    assert verdict(result) == f"{begins}alone, the trained policy loses to b0."
    assert len(verdict(result).split()) <= 26


def test_the_policys_differences_to_the_baselines_are_those_of_its_own_summary():
    result = summary_of(FIRST, SECOND, TEN, policy=TEN)
    own = summary_of(TEN, SECOND, TEN)
    for name in ("b0", "b1"):
        for metric, found in result["paired_policy"][name].items():
            assert found == {key: own["paired"][name][metric][key] for key in found}
    assert "paired_policy" not in own


def test_plain_words_have_the_figures_and_what_rl_changed():
    result = summary_of(FIRST, [1] * 10 + [0] * 30)
    values = {"ndcg@10": np.linspace(0.5, 1.0, 40)}
    add_gain(result, values, {"ndcg@10": values["ndcg@10"] - 0.1}, 100, 0)
    words = plain_words(result)
    assert words.startswith(
        "Of 100 users, 100.0 find their next item among the model's first ten. The best baseline, b0"
    )
    assert (
        "does so for 25.0" in words
        and "is 1.0000 against 0.2500; the difference of +0.7500 is more than chance" in words
    )
    assert "Reinforcement learning raised the policy's NDCG@10 (+0.1000" in words
    add_gain(result, values, values, 100, 0)
    assert "Reinforcement learning changed nothing" in plain_words(result)


def test_users_have_their_history_target_and_every_systems_first_five():
    titles = [f"thing {n}" for n in range(9)] + [None]
    ranked = {"model": np.tile(np.arange(8), (30, 1)), "itemknn": np.full((30, 8), -1)}
    users = user_answers([list(range(9)) * 2] * 30, np.full(30, 6), ranked, titles)
    assert len(users) == 20
    assert users[0]["target"] == "thing 6" and users[0]["earlier"] == 6 and len(users[0]["history"]) == 12
    assert users[0]["systems"]["model"] == {"recommended": [f"thing {n}" for n in range(5)], "rank": 7}
    assert users[0]["systems"]["itemknn"] == {"recommended": [], "rank": 0}
    assert user_answers([[9]], np.array([9]), {}, titles)[0]["target"] == "(item 9, no title)"


def test_the_map_has_the_directions_of_largest_variance_and_large_catalogues_are_sampled(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.standard_normal((400, 2)) * [5.0, 1.0]
    turned = np.linalg.qr(rng.standard_normal((6, 6)))[0][:2]
    found = principal_components(points @ turned)
    assert abs(np.corrcoef(found[:, 0], points[:, 0])[0, 1]) > 0.999
    assert abs(np.corrcoef(found[:, 1], points[:, 1])[0, 1]) > 0.999
    assert np.abs(found).max(axis=0) == pytest.approx(1)
    assert (principal_components(np.ones((3, 1))) == 0).all()
    many = shown_items(10 * SHOWN)
    assert len(set(many.tolist())) == SHOWN and (np.diff(many) > 0).all()
    view = catalog_view(PAIRS_NL[::-1], [f"t{n}" for n in range(ITEMS)])
    assert (view["axes"], view["items"]) == ("codes", ITEMS)
    assert [row[3:] for row in view["rows"]] == PAIRS_NL.tolist() and view["rows"][0][0] == "t38"
    write_vectors(rng.standard_normal((30, 4)).astype(np.float32), 0, tmp_path / "part-00000.parquet")
    write_vectors(rng.standard_normal((10, 4)).astype(np.float32), 30, tmp_path / "part-00001.parquet")
    by_vectors = catalog_view(PAIRS_NL, ["t"] * ITEMS, tmp_path)
    assert by_vectors["axes"] == "vectors" and len({tuple(row[1:3]) for row in by_vectors["rows"]}) == ITEMS


def test_panels_hold_every_audit_figure_and_long_curves_keep_their_ends():
    points = [
        {"step": s, "reward": 1.0 * s, "kl/1": 0.1, "kl": 0.2, "mine/x": float("nan"), "epoch": 1} for s in range(1001)
    ]
    (stage,) = training_panels({"grpo": points, "sft": []})
    assert [panel["title"] for panel in stage["panels"]] == ["Mean reward", "KL to the SFT policy"]
    assert [one["name"] for one in stage["panels"][1]["series"]] == ["level 1", "all"]
    drawn = stage["panels"][0]["series"][0]["points"]
    assert len(drawn) <= POINTS + 1 and drawn[0] == [0, 0.0] and drawn[-1] == [1000, 1000.0]


def test_runs_that_differ_in_the_seed_alone_are_averaged_and_others_are_not(tmp_path):
    shares = {"one": 0.8, "two": 0.7, "other": 0.2}
    for number, (name, share) in enumerate(shares.items()):
        config = f"name: {name}\nseed: {number}\nstorage: st\ndecode:\n  width: {9 if name == 'other' else 50}\n"
        write_report(tmp_path / name, summarise(rankings(model=share), resamples=20), config_text=config, title=name)
    page = report_runs([tmp_path / name for name in shares], tmp_path / "all")
    found = json.loads((tmp_path / "all" / "report.json").read_text())
    values = [run["rows"][0]["values"]["ndcg@10"] for run in found["runs"]]
    (group,) = found["seeds"]
    assert group["labels"] == ["one", "two"]
    assert group["rows"]["Model"]["ndcg@10"]["mean"] == pytest.approx((values[0] + values[1]) / 2)
    text, twin = page.read_text("utf-8"), (tmp_path / "all/report.md").read_text("utf-8")
    assert "Over 2 seeds" in text and "one, two" in twin
    minus = [
        run["rows"][0]["values"]["ndcg@10"]
        - next(row for row in run["rows"] if row["key"] == "itemknn")["values"]["ndcg@10"]
        for run in found["runs"][:2]
    ]
    span = group["minus"]["ItemKNN, tuned"]["ndcg@10"]
    assert span == pytest.approx(over_runs(minus)) and "Model" not in group["minus"]
    assert f'<td>ItemKNN, tuned</td><td class="{"yes" if span["low"] > 0 else ""}">{span["mean"]:+.4f}<small>' in text
    assert f"| ItemKNN, tuned | {span['mean']:+.4f} ({span['low']:+.4f} to {span['high']:+.4f}) |" in twin


def two_runs(directory, queries=QUERIES):
    for name, share in (("one", 0.8), ("two", 0.5)):
        found = rankings(model=share)
        cut = Rankings(
            found.targets_Q[:queries],
            found.model_QK[:queries],
            {n: r[:queries] for n, r in found.baselines.items()},
            PAIRS_NL,
            np.arange(ITEMS),
        )
        (directory / name).mkdir(exist_ok=True)
        curve = [{"step": s, "loss": 1.0 / s} for s in (1, 2, 3)]
        write_report(directory / name, summarise(cut, resamples=20), curves={"sft": curve}, title=name)
    return [directory / "one", directory / "two"]


def test_a_run_is_shown_again_as_it_was_and_two_runs_side_by_side(tmp_path):
    runs = two_runs(tmp_path)
    again = report_runs(runs[:1], tmp_path / "again")
    for file in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "again" / file).read_bytes() == (runs[0] / file).read_bytes()
    page = report_runs(runs, tmp_path / "both").read_text("utf-8")
    figures = [json.loads((run / "report.json").read_text())["metrics"]["model"]["item"]["ndcg@10"] for run in runs]
    assert f"Of 2 runs, one has the highest NDCG@10: {figures[0]:.4f} against {figures[1]:.4f} of the next." in page
    assert page.count("<td>ItemKNN, tuned</td>") == 2
    assert "| one |" in (tmp_path / "both" / "report.md").read_text("utf-8")
    assert len(json.loads((tmp_path / "both" / "report.json").read_text())["runs"]) == 2
    assert again.name == "report.html"


def test_what_is_no_run_and_runs_of_other_queries_are_refused(tmp_path):
    with pytest.raises(InputError, match="got no run"):
        report_runs([], tmp_path)
    with pytest.raises(InputError, match=r"holds no report.json: wanted the directory of a finished run"):
        report_runs([tmp_path], tmp_path)
    runs = two_runs(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; wanted a directory"):
        report_runs(runs, tmp_path / "file")
    with pytest.raises(InputError, match="--out /proc/x: no directory can be made"):
        report_runs(runs, Path("/proc/x"))
    (tmp_path / "few").mkdir()
    few = two_runs(tmp_path / "few", queries=50)
    with pytest.raises(InputError, match=r"different queries \(.*one 200 of 40 items, .*two 50 of 40"):
        report_runs([runs[0], few[1]], tmp_path / "out")
    with pytest.raises(InputError, match="lacks in_plain_words"):
        report_runs([report_runs(runs, tmp_path / "both").parent], tmp_path / "out")
    (runs[0] / "report.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        report_runs(runs[:1], tmp_path / "out")


def test_a_run_that_is_given_twice_is_one_seed(tmp_path):
    for name, seed, share in (("one", 0, 0.8), ("again", 0, 0.8), ("two", 1, 0.7)):
        config = f"name: {name}\nseed: {seed}\nstorage: st\n"
        write_report(tmp_path / name, summarise(rankings(model=share), resamples=20), config_text=config, title=name)
    report_runs([tmp_path / name for name in ("one", "again", "two")], tmp_path / "all")
    (group,) = json.loads((tmp_path / "all" / "report.json").read_text())["seeds"]
    assert group["labels"] == ["one", "two"]
    report_runs([tmp_path / name for name in ("one", "again")], tmp_path / "same")
    assert json.loads((tmp_path / "same" / "report.json").read_text())["seeds"] == []


def test_a_map_of_items_whose_texts_are_all_equal_has_one_place():
    assert not principal_components(np.ones((300, 64))).any()


def test_runs_of_one_name_in_two_places_are_told_apart_and_other_catalogues_are_refused(tmp_path):
    for place in ("a", "b"):
        write_report(tmp_path / place / "demo", summarise(rankings(), resamples=20), title="demo")
    report_runs([tmp_path / place / "demo" for place in "ab"], tmp_path / "all")
    found = json.loads((tmp_path / "all" / "report.json").read_text())
    assert [run["label"] for run in found["runs"]] == [f"demo ({tmp_path / place / 'demo'})" for place in "ab"]
    own = rankings()
    more = Rankings(own.targets_Q, own.model_QK, own.baselines, np.r_[PAIRS_NL, PAIRS_NL], np.arange(2 * ITEMS))
    write_report(tmp_path / "other", summarise(more, resamples=20), title="other")
    with pytest.raises(InputError, match=r"demo 200 of 40 items, .*other 200 of 80 items"):
        report_runs([tmp_path / "a" / "demo", tmp_path / "other"], tmp_path / "out")


def test_a_weight_of_the_prior_that_the_config_gives_is_not_said_to_be_tuned():
    for given, words in ((True, "given by the config"), (False, "chosen on validation")):
        prior = {"prior": {"weight": 0.5, "given": given}}
        result = summarise(rankings(policies={"policy": rankings().model_QK}), resamples=20, details=prior)
        add_prior(result, "policy", 0.5)
        assert words in plain_words(result) and words in result["headline"]
