"""Memory and time of what holds a whole log, at growing numbers of events: each place in a process of its own.

The log is made up with real skew: how often an item is chosen follows a power law, users have log-normal numbers of
events, and an item is often followed by one of its few neighbours. There are 16 events to a user, 50 to an item.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Bench, in_process
from cluster.artifacts import Artifact
from cluster.progress import STAGE
from genrec.config import Config
from genrec.metrics import IntArray

LOG = logging.getLogger(__name__)

NEEDS: tuple[str, ...] = ()
SIZES = (1_000_000, 10_000_000)
USER_EVENTS, ITEM_EVENTS = 16, 50
HISTORY, BUCKET_EVENTS = 20, 2_000_000
"""Items of a query's history, and events in one bucket of ``prepare``."""
BATCHES, BATCH_SIZE, UPDATES, POOLS = 200, 64, 1000, 4
CHUNK_USERS = 1 << 16
EVENTS_OF_A_QUERY, FOUND = 10, 0.3
"""Events for each test query whose metrics are counted, and the share of the targets that its rankings have."""
MB = 2**20
MODULES = (
    "cluster.stages.prepare",
    "genrec.baselines.tuning",
    "genrec.evaluation.summary",
    "genrec.learning.rl.query_sampler",
    "genrec.policy.model",
    "genrec.sid.build",
)
"""What the places import: loaded before anything is measured."""


@dataclass(frozen=True)
class Place:
    """A measured place: seconds by the clock and of the processor, growth of memory (MiB), and things it handled."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    handled: int


Work = Callable[[], int]


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """A million and ten million events."""
    return measure(config, SIZES)


def measure(config: Config, sizes: Sequence[int]) -> Bench:
    """Every place at each number of events, and how the time per event grows from the first to the last of them."""
    bench = Bench("scale")
    root = in_process(config, "scale").storage_path
    for size in sizes:
        shutil.rmtree(root, ignore_errors=True)
        write_log(root / "log", size, config.seed)
        own = _config(config, root, size)
        for name, make in PLACES.items():
            found = in_fresh_process(make, own, root / "data")
            bench.figures[f"{name}_us_per_event_{size:.0e}"] = 1e6 * found.seconds / found.handled
            bench.figures[f"{name}_peak_mb_{size:.0e}"] = found.peak_mb
    shutil.rmtree(root, ignore_errors=True)
    if len(sizes) > 1:
        for name in PLACES:
            first, last = (bench.figures[f"{name}_us_per_event_{size:.0e}"] for size in (sizes[0], sizes[-1]))
            bench.ratios[f"{name}_time_per_event_last_over_first"] = last / first
    return bench


def _config(config: Config, root: Path, size: int) -> Config:
    settings = {
        "data.source": "parquet",
        "data.path": str(root / "log"),
        "data.items": None,
        "data.interactions": None,
        "data.columns": {},
        "data.filters": {},
        "data.split": "leave_one_out",
        "data.max_history": HISTORY,
        "data.eval_queries": 5000,
        "data.shards": max(4, size // BUCKET_EVENTS),
        "learning.sft.example_format": "dense",
    }
    return in_process(config).replace(settings)


def write_log(folder: Path, events: int, seed: int) -> None:
    """A shop of about ``events`` events as ``items.parquet`` and ``interactions.parquet`` in ``folder``."""
    folder.mkdir(parents=True)
    items = max(100, events // ITEM_EVENTS)
    names = pa.array([f"i{item}" for item in range(items)])
    titles = pa.array([f"thing {item % 997} of kind {item % 31}" for item in range(items)])
    pq.write_table(pa.table({"item_id": names, "title": titles}), folder / "items.parquet")
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
    with pq.ParquetWriter(folder / "interactions.parquet", schema) as file:
        for users, items_E, times_E in log_parts(events, items, np.random.default_rng(seed)):
            names_E = pa.DictionaryArray.from_arrays(pa.array(items_E.astype(np.int32)), names).cast(pa.string())
            users_E = pa.array(np.char.add("u", users.astype(str)))
            file.write_table(pa.table([users_E, names_E, pa.array(times_E)], schema=schema))


def log_parts(events: int, items: int, rng: np.random.Generator) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """Users, items and times (E,) of some users at a time."""
    users = max(10, events // USER_EVENTS)
    popular_N = rng.permutation(items)
    for first in range(0, users, CHUNK_USERS):
        count = min(CHUNK_USERS, users - first)
        length_U = np.clip(rng.lognormal(2.3, 1.0, count).astype(np.int64), 4, 1000)
        users_E = np.repeat(np.arange(count), length_U)
        drawn_E = np.minimum((items * rng.random(len(users_E)) ** 3).astype(np.int64), items - 1)
        follows_E = rng.random(len(users_E)) < 0.5
        follows_E[1:] &= users_E[1:] == users_E[:-1]
        follows_E[0] = False
        step_E = rng.integers(1, 6, len(users_E))
        start_E = np.maximum.accumulate(np.where(follows_E, 0, np.arange(len(users_E))))
        walked_E = np.cumsum(np.where(follows_E, step_E, 0))
        items_E = popular_N[(drawn_E[start_E] + walked_E - walked_E[start_E]) % items]
        times_E = 1_000_000_000 + rng.integers(0, 10**8, count)[users_E] + 60 * np.arange(len(users_E))
        yield users_E + first, items_E, times_E


def in_fresh_process(make: Callable[[Config, Path], Work], config: Config, data: Path) -> Place:
    """Measure the work of a place on the directory ``data`` in a new interpreter, which nothing else has used."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(_measure, make, config, data).result()
    about = (make.__name__.strip("_"), found.handled, found.cpu_seconds, found.peak_mb)
    benchmark = make.__module__.rpartition(".")[2].replace("_", "-")
    LOG.info("%s of %d: %.1f s of a processor, %.0f MB", *about, extra={STAGE: benchmark})
    return found


def _measure(make: Callable[[Config, Path], Work], config: Config, data: Path) -> Place:
    for module in MODULES:
        import_module(module)
    work = make(config, data)
    before_mb, start, cpu_start = psutil.Process().memory_info().rss / MB, time.perf_counter(), time.process_time()
    handled = work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Place(seconds, cpu_seconds, max(0.0, _peak_mb() - before_mb), handled)


def _peak_mb() -> float:
    """The most that was resident. Linux tells it for this program alone; elsewhere it holds the parent's, too."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB


def _prepare(config: Config, data: Path) -> Work:
    from cluster.stages.prepare import prepare
    from genrec.data.sources import open_source

    def work() -> int:
        data.mkdir()
        return int(prepare(open_source(config.data), config, data)["interactions"])

    return work


def _sft_input(config: Config, data: Path) -> Work:
    from cluster.stages.sft import make_examples

    def work() -> int:
        examples = make_examples(data, config)
        return examples.targets(np.arange(len(examples.lengths())))

    return work


def _sft_batches(config: Config, data: Path) -> Work:
    """The first batches of an epoch, its order included."""
    from cluster.stages.sft import make_examples
    from genrec.learning.sft.batches import Epochs

    epochs = Epochs(make_examples(data, config), BATCH_SIZE, config.seed)

    def work() -> int:
        steps = range(min(BATCHES, epochs.steps))
        return sum(piece.targets for step in steps for piece in epochs.micro_batches(step, BATCH_SIZE, 0, 1)[0])

    return work


def _sft_stream(config: Config, data: Path) -> Work:
    """The first pools of an epoch, as one worker takes them; the files' windows are counted before."""
    from genrec.data.readers import sequence_files
    from genrec.learning.sft.streaming import StreamedEpochs, WindowStream, count_file_windows

    pool = config.learning.sft.pool
    windows_F = tuple(count_file_windows(file, HISTORY) for file in sequence_files(data))
    epochs = StreamedEpochs(WindowStream(data, windows_F, HISTORY, BATCH_SIZE, pool, config.seed))

    def work() -> int:
        steps = range(min(POOLS * pool // BATCH_SIZE, epochs.steps))
        return sum(piece.targets for step in steps for piece in epochs.micro_batches(step, BATCH_SIZE, 0, 1)[0])

    return work


def _window_counts(config: Config, data: Path) -> Work:
    from genrec.data.readers import sequence_files
    from genrec.learning.sft.streaming import count_file_windows

    return lambda: sum(count_file_windows(file, HISTORY) for file in sequence_files(data))


def _epoch_order(config: Config, data: Path) -> Work:
    from cluster.stages.sft import make_examples
    from genrec.learning.sft.batches import Epochs

    examples = make_examples(data, config)

    def work() -> int:
        epochs = Epochs(examples, BATCH_SIZE, config.seed)
        epochs.index(0)
        return len(examples.lengths())

    return work


def _grpo_queries(config: Config, data: Path) -> Work:
    """The queries of 1,000 updates, and the first of these."""
    from genrec.data.readers import count_train_queries, read_train_queries
    from genrec.learning.rl.query_sampler import Draws, QueryStream

    def work() -> int:
        draws = Draws(count_train_queries(data), BATCH_SIZE, seed=config.seed)
        rows = draws.rows_until(UPDATES)
        QueryStream(read_train_queries(data, with_context=False, rows_R=rows), draws, rows)(0)
        return draws.queries

    return work


def _itemknn(config: Config, data: Path) -> Work:
    from genrec.baselines.itemknn import KnnSettings, Pairs, fit_itemknn
    from genrec.baselines.train_log import read_train_log
    from genrec.data.readers import count_items

    def work() -> int:
        log = read_train_log(data, count_items(data))
        fit_itemknn(Pairs(log), KnnSettings())
        return len(log.items_E)

    return work


def _neighbours(config: Config, data: Path) -> Work:
    """The ItemKNN that teaches one of the folds of users, as a training that streams has it fitted."""
    from genrec.data.readers import count_items
    from genrec.data.train_counts import read_train_counts
    from genrec.learning.sft.knn_teacher import fit_fold

    items = count_items(data)
    events = int(read_train_counts(data, items).events_N.sum())

    def work() -> int:
        fit_fold(data, items, 0).write(data / "neighbours")
        return events

    return work


def _transitions(config: Config, data: Path) -> Work:
    from genrec.baselines.train_log import read_train_log
    from genrec.baselines.transitions import Transition
    from genrec.data.readers import count_items

    def work() -> int:
        log = read_train_log(data, count_items(data))
        Transition(log)
        return len(log.items_E)

    return work


def _metrics(config: Config, data: Path) -> Work:
    """All metrics of a report, with intervals and paired differences: of four rankings, a query for ten events."""
    from genrec.data.readers import read_stats
    from genrec.data.train_counts import read_train_counts
    from genrec.evaluation.summary import Rankings, summarise

    events, items = (int(read_stats(data)[name]) for name in ("interactions", "items"))
    counts_N = read_train_counts(data, items).events_N
    queries, rng = events // EVENTS_OF_A_QUERY, np.random.default_rng(config.seed)

    def ranking(targets_Q: IntArray) -> IntArray:
        ranked_QK = rng.integers(0, items, (queries, config.decode.width), dtype=np.int32)
        found_Q = np.flatnonzero(rng.random(queries) < FOUND)
        ranked_QK[found_Q, rng.integers(0, config.decode.width, len(found_Q))] = targets_Q[found_Q]
        return ranked_QK

    def work() -> int:
        targets_Q = rng.integers(0, items, queries)
        codes_NL = rng.integers(0, 256, (items, 3))
        baselines = {name: ranking(targets_Q) for name in ("popularity", "transitions", "itemknn")}
        halves = {"repeat": np.array(["new", "repeat"])[targets_Q % 2]}
        summarise(Rankings(targets_Q, ranking(targets_Q), baselines, codes_NL, counts_N, labels=halves))
        return queries

    return work


PLACES: Mapping[str, Callable[[Config, Path], Work]] = MappingProxyType(
    {
        "prepare": _prepare,
        "sft_input": _sft_input,
        "sft_batches": _sft_batches,
        "window_counts": _window_counts,
        "sft_stream": _sft_stream,
        "epoch_order": _epoch_order,
        "grpo_queries": _grpo_queries,
        "itemknn_fit": _itemknn,
        "neighbours": _neighbours,
        "transitions": _transitions,
        "metrics": _metrics,
    }
)
"""Makes what a place needs and returns its work, which is what is measured."""
