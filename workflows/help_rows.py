"""What the help of each verb says of its input, output and settings; read only when the help is shown."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genrec.config import Section

Rows = Sequence[tuple[str, str]]

LAST_STAGE = {
    **{stage: stage for stage in ("prepare", "embed", "assign", "sft", "grpo", "tune", "refit", "evaluate")},
    "full": "evaluate",
}
"""The verbs that run the pipeline, and the stage that each runs it to."""


def stage_rows(verb: str) -> Rows:
    """What a verb of the pipeline runs first, reads and writes."""
    from cluster.pipeline import STAGES, always, stages_needed
    from genrec.config import Config

    stage, raw = STAGES[LAST_STAGE[verb]], "the catalogue and the log of data.source"
    order = [other.name for other in stages_needed(Config(), stage.name)]
    writes = ("writes", f"<storage>/{stage.name}/<key>/: {stage.writes}")
    if verb == "full":
        return [("runs", ", ".join(order)), ("reads", raw), writes]
    reads = [name if when is always else f"{name} (where the config needs it)" for name, when in stage.reads.items()]
    return [("runs first", ", ".join(order[:-1]) or "nothing"), ("reads", ", ".join(reads) or raw), writes]


def report_rows() -> Rows:
    """What a report of finished runs reads and writes."""
    return [
        ("runs first", "nothing: the runs are finished"),
        ("reads", "RUN/report.json, which genrec evaluate wrote"),
        ("writes", "DIRECTORY/report.html, report.md, report.json (DIRECTORY is ./report unless --out says otherwise)"),
    ]


def judge_rows() -> Rows:
    """What a judgement reads and writes."""
    return [
        ("runs first", "nothing: the run is finished"),
        ("reads", "RUN/answers.parquet, which genrec evaluate wrote"),
        ("writes", "RUN/judge/<key>/: judgements.jsonl, judge.json, judge.html"),
    ]


def catalog_rows() -> Rows:
    """What a change of the catalogue reads and writes."""
    return [
        ("runs first", "prepare, embed, assign"),
        ("reads", "assign, embed (where the config needs it), and the changes so far"),
        ("writes", "<storage>/live/<key of assign>/00001/, 00002/, …: the whole catalogue after each change"),
    ]


def update_rows() -> Rows:
    """The settings of an update."""
    from genrec.config import Update

    return _fields("learning.update", Update)


def serve_rows() -> Rows:
    """The settings of the service."""
    from genrec.config import Serve

    return _fields("serve", Serve)


def _fields(name: str, section: type[Section]) -> Rows:
    """Each field of a section with its description and its default."""
    fields = section.model_fields.items()
    return [(f"{name}.{key}", f"{field.description or ''} [{field.default}]".strip()) for key, field in fields]


def export_rows() -> Rows:
    """What an export reads and writes."""
    return [
        ("reads", "RUN, and the parts under its storage that it names"),
        ("writes", "DIR: model, tokenizer, README.md, sid_space.*, items.json, catalog_logits.py, genrec/"),
    ]


def import_rows() -> Rows:
    """What an import reads and writes."""
    return [
        ("reads", "DIR, as genrec export wrote it"),
        ("writes", "<storage>/imported/<key>/, and the run <storage>/runs/<name>-<key>"),
    ]


def manifest_rows() -> Rows:
    """The manifests that come with the package."""
    return [
        ("cluster.yaml", "RayCluster (KubeRay): nodes for data, learners and rollouts, which come and go"),
        ("full.yaml", "RayJob: the whole workflow on a cluster of its own"),
        ("nightly.yaml", "CronJob: genrec update of a run with the events of the day"),
        ("service.yaml", "RayService: the HTTP service"),
        ("launcher.yaml", "the same cluster by Ray's own launcher, without Kubernetes"),
    ]


def benchmark_rows() -> Rows:
    """The benchmarks, and what each measures."""
    return list(import_module("benchmarks.registry").BENCHMARKS.items())
