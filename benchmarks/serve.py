"""The HTTP service under load on the loopback: batching, latency, memory, and changes and kills while clients ask.

Two applications of one Ray take turns: one searches for all requests that wait, the other for each by itself. Answers
are not cached. Then one application with two replicas is asked by eight clients while items are inserted and removed,
the run is reloaded, and replicas are killed.
"""

from __future__ import annotations

import os
import secrets
import socket
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.harness import Bench
from benchmarks.load import HttpReply, Load, LoadClient, LoadResult
from cluster.artifacts import Artifact
from genrec.config import Config
from genrec.data.readers import read_items, read_queries
from genrec.inference.run_record import RunRecord

if TYPE_CHECKING:
    from cluster.serve.application import ServeArguments

NEEDS = ("evaluate",)
CLIENTS = 8
ROUNDS = 3
ROUND_S = 8.0
SHARE = 0.6
"""Of the saturating rate, at which latency is measured."""

KEPT_MEMORY = 0.05
"""Growth of a replica's memory that is allowed."""

REPLICA = "ray::ServeReplica:{}:"


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """Every measurement, on the run that ``evaluate`` published."""
    return measure(config, config.storage_path / "runs" / f"{config.name}-{artifacts['evaluate'].key}")


def measure(config: Config, published: Path) -> Bench:
    """Every measurement, on a finished run; ``failure`` says what broke under changes and kills."""
    bench = Bench("serve")
    os.environ["GENREC_API_KEY"] = secrets.token_hex(16)
    bodies = _bodies(RunRecord.read(published).data)
    began = time.perf_counter()
    address = _start_ray(config)
    _deploy(config, published, "batched", replicas=1)
    bench.figures["start_to_ready_s"] = time.perf_counter() - began
    _deploy(config, published, "single", replicas=1, batch=1)
    rate = _measure_batching(bench, address, bodies)
    _delete("single")
    _measure_latency(bench, f"{address}/batched", bodies, SHARE * rate)
    _measure_memory(bench, f"{address}/batched", bodies, config.bench.requests)
    _delete("batched")
    _deploy(config, published, "changed", replicas=2)
    _measure_changes(bench, f"{address}/changed", bodies, published)
    return bench


def _bodies(data: Path, most: int = 2000) -> list[dict[str, Any]]:
    """Requests with the histories of test queries, every fourth for unseen items; k from 5 to 14."""
    ids, histories = read_items(data)["id"].to_pylist(), read_queries(data, "test")["history"].to_pylist()[:most]
    return [
        {
            "history": [ids[item] for item in history],
            "k": 5 + number % 10,
            **({"constraint": {"unseen": True}} if number % 4 == 0 else {}),
        }
        for number, history in enumerate(histories)
    ]


def _start_ray(config: Config) -> str:
    """Start Ray and its HTTP proxy, as ``genrec serve`` does; returns the address."""
    from cluster.serve.command import set_serve_variables
    from cluster.session import connect

    set_serve_variables()
    connect(config)
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    return f"http://127.0.0.1:{port}"


def _deploy(config: Config, published: Path, name: str, **changes: Any) -> None:
    from ray import serve

    from cluster.serve.application import ServeArguments, build

    settings = config.serve.replace(cached_answers=0, cpus=0.5, deadline_ms=30_000.0, **changes)
    arguments: ServeArguments = ServeArguments(run=str(published), **settings.model_dump())
    serve.run(build(arguments), name=name, route_prefix=f"/{name}")


def _delete(name: str) -> None:
    from ray import serve

    serve.delete(name)


def _measure_batching(bench: Bench, address: str, bodies: Sequence[Mapping[str, Any]]) -> float:
    """Requests per second of both, in turns; returns those of batches."""
    rates: dict[str, list[float]] = {"batched": [], "single": []}
    for number in range(ROUNDS + 1):
        for name, found in rates.items():
            seconds = ROUND_S if number else ROUND_S / 4  # the first round warms up
            result = Load(f"{address}/{name}", bodies, CLIENTS, seconds=seconds).run()
            if number:
                found.append(result.per_s)
    for name, found in rates.items():
        bench.figures[f"{name}_requests_per_s"] = statistics.median(found)
    both = zip(rates["batched"], rates["single"], strict=True)
    bench.ratios["batched/single requests"] = statistics.median(batched / single for batched, single in both)
    return statistics.median(rates["batched"])


def _measure_latency(bench: Bench, address: str, bodies: Sequence[Mapping[str, Any]], rate: float) -> None:
    result = Load(address, bodies, CLIENTS, rate=rate, seconds=2 * ROUND_S).run()
    bench.figures[f"at_{SHARE:.0%}_requests_per_s"] = result.per_s
    for share in (0.5, 0.95):
        bench.figures[f"at_{SHARE:.0%}_p{100 * share:.0f}_ms"] = result.quantile_ms(share)


def _measure_memory(bench: Bench, address: str, bodies: Sequence[Mapping[str, Any]], requests: int) -> None:
    """Memory of the replica after a tenth of the requests, by when its caches are full, and after all."""
    begin = Load(address, bodies, CLIENTS, requests=requests // 10).run()
    before = _memory_mb("batched")
    result = Load(address, bodies, CLIENTS, requests=requests - requests // 10).run()
    after = _memory_mb("batched")
    bench.figures |= {"requests": requests, "replica_mb_begin": before, "replica_mb_end": after}
    bench.ratios["memory end/begin"] = after / before
    if begin.failed + result.failed:
        bench.failure = f"{begin.failed + result.failed} requests failed though nothing was changed"
    elif after > (1 + KEPT_MEMORY) * before:
        bench.failure = f"a replica's memory grew from {before:.0f} to {after:.0f} MB in {requests} requests"


def _memory_mb(name: str) -> float:
    return sum(process.memory_info().rss for process in replicas_of(name)) / 2**20


def replicas_of(name: str) -> list[psutil.Process]:
    """The processes of an application's replicas."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "".join(process.cmdline()).startswith(REPLICA.format(name)):
                found.append(process)
    return found


def _measure_changes(bench: Bench, address: str, bodies: Sequence[Mapping[str, Any]], published: Path) -> None:
    """Inserts, removals, a reload and two kills while clients ask: what failed, and what was answered wrongly."""
    load = Load(address, bodies, CLIENTS)
    results: list[LoadResult] = []
    asking = threading.Thread(target=lambda: results.append(load.run()))
    asking.start()
    changes = Changes(address)
    try:
        time.sleep(ROUND_S / 4)
        for number in range(3):
            changes.insert_and_remove(number)
            changes.remove_recommended(bodies[number])
            if number < 2:
                _kill_one("changed")
            else:
                changes.reload(published.name)
            time.sleep(ROUND_S / 2)
    finally:
        load.stop.set()
        asking.join()
    result = results[0]
    wrong = changes.wrong + sum(changes.is_wrong(reply) for reply in result.replies)
    bench.figures |= {
        "changes": changes.made,
        "kills": 2,
        "during_changes_requests": len(result.replies),
        "during_changes_retried": sum(reply.retried for reply in result.replies),
        "during_changes_failed": result.failed + changes.failed,
        "during_changes_wrong": wrong,
        "during_changes_p95_ms": result.quantile_ms(0.95),
    }
    if result.failed + changes.failed or wrong:
        bench.failure = f"{result.failed} requests and {changes.failed} changes failed, {wrong} answers were wrong"


def _kill_one(name: str) -> None:
    if replicas := replicas_of(name):
        replicas[0].kill()


class Changes:
    """Changes of what is served, and what later answers must look like."""

    def __init__(self, address: str) -> None:
        self._client = LoadClient(address, {"x-api-key": os.environ["GENREC_API_KEY"]})
        self._removed: dict[str, float] = {}
        self.made = self.failed = self.wrong = 0

    def insert_and_remove(self, number: int) -> None:
        """Insert an item, ask for it, remove it, and ask again."""
        item = f"bench-{os.getpid()}-{number}"
        self._change("POST", "/v1/items", {"items": [{"id": item, "title": f"a new thing {number}"}]})
        self.wrong += self._found(item) != [item]
        self._change("DELETE", f"/v1/items/{item}")
        self.wrong += self._found(item) != []

    def remove_recommended(self, body: Mapping[str, Any]) -> None:
        """Remove the best item of an answer: no request that begins later may be answered with it."""
        found = self._client.ask("POST", "/v1/recommend", body).content.get("items")
        if not found:
            self.failed += 1
            return
        best = found[0]["id"]
        if self._change("DELETE", f"/v1/items/{best}"):
            self._removed[best] = time.monotonic()

    def reload(self, run: str) -> None:
        """Load the run anew."""
        self._change("POST", "/v1/reload", {"run": run})

    def is_wrong(self, reply: HttpReply) -> bool:
        """Whether an answer has an item that was removed before the request was made."""
        items = [item["id"] for item in reply.content.get("items", ())]
        return any(item in self._removed and reply.due > self._removed[item] for item in items)

    def _found(self, item: str) -> list[str]:
        body = {"history": [item], "k": 5, "constraint": {"allow": [item]}}
        return [found["id"] for found in self._client.ask("POST", "/v1/recommend", body).content.get("items", ())]

    def _change(self, method: str, path: str, body: object = None) -> bool:
        """Whether it was made."""
        self.made += 1
        is_made = self._client.ask(method, path, body).status == 200
        self.failed += not is_made
        return is_made
