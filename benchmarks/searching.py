"""What searching a large table costs, exactly and by the index, and what faiss and usearch take for the same.

    python benchmarks/searching.py --rows 1000000 --folder /tmp/searching

Rows are synthetic: a centre for every 100 rows, normal and of unit length; a row is the unit row of its centre and 0.7
times a normal row of about unit length. Queries are made in the same way and are no rows. Prints one JSON line a
measurement, of processor time: on one thread that is what a quiet machine takes. faiss-cpu and usearch are measured
where they are installed, the graph of usearch on the first ``--graph`` rows, since one of ten millions takes hours.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lookalike.core.progress import silent
from lookalike.curate.index import index_of
from lookalike.curate.search import exact
from lookalike.train.embeddings import ROWS, Writer, arrow, opened_table, vectors_of
from lookalike.types import Embeddings

QUERIES, TOP = 200, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--graph", type=int, default=100_000)
    parser.add_argument("--index-alone", action="store_true", help="for tables that memory does not hold")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", default="all", choices=["all", "ours", "rivals"])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = asked.folder / f"{asked.rows}.parquet"
    if not path.exists():
        tell("made the table", seconds=took(lambda: make(path, asked.rows, asked.width)))
    queries = torch.from_numpy(next(rows_of(asked.rows, asked.width, 1, QUERIES)))
    truth = by_groups(path, queries)
    if asked.part != "rivals":
        if not asked.index_alone:
            compare_all(path, queries, truth)
        by_index(path, queries, truth)
    if asked.part != "ours":
        rivals(path, queries, truth, asked.graph)


def rows_of(rows: int, width: int, seed: int, count: int) -> Iterator[np.ndarray]:
    """``count`` rows of a table of so many, ``ROWS`` at a time."""
    chance = np.random.default_rng(0)
    centres = chance.standard_normal((rows // 100, width), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    chance = np.random.default_rng(seed)
    for start in range(0, count, ROWS):
        some = min(ROWS, count - start)
        noise = chance.standard_normal((some, width), np.float32) / width**0.5
        mixed = centres[chance.integers(0, len(centres), some)] + 0.7 * noise
        yield mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def make(path: Path, rows: int, width: int) -> None:
    writer, start = None, 0
    with path.open("wb") as file:
        for part in rows_of(rows, width, 2, rows):
            names = [f"photos/{i // 1000:05}/{i:08}.jpg" for i in range(start, start + len(part))]
            split = ["train" if i % 10 else "test" for i in range(start, start + len(part))]
            table = arrow(Embeddings(names, split, np.arange(len(part)) % 5, part, tuple("abcde")))
            writer = writer or Writer(file, table.schema)
            writer.write(table)
            start += len(part)
        assert writer is not None
        writer.close()


def by_groups(path: Path, queries: torch.Tensor) -> list[set[int]]:
    """The true nearest, without holding the table."""
    kept = path.with_suffix(".truth.npy")
    if not kept.exists():
        values, rows, start = torch.full((len(queries), TOP), -2.0), torch.zeros(len(queries), TOP).long(), 0
        with opened_table(path) as file:
            for batch in file.iter_batches(65_536, columns=["embedding"]):
                part = batch["embedding"].flatten().to_numpy().reshape(len(batch), -1)
                cosines = torch.from_numpy(queries.numpy() @ part.T)
                more = torch.arange(start, start + len(part)).expand(len(queries), -1)
                values, order = torch.cat([values, cosines], 1).topk(TOP)
                rows, start = torch.cat([rows, more], 1).gather(1, order), start + len(part)
        np.save(kept, rows.numpy())
    return [set(row) for row in np.load(kept).tolist()]


def compare_all(path: Path, queries: torch.Tensor, truth: list[set[int]]) -> None:
    began = time.process_time()
    with opened_table(path) as file:
        vectors = torch.from_numpy(vectors_of(file, path))
    tell("exact: opened", seconds=time.process_time() - began)
    one = [took(lambda q=q: list(exact(vectors, q[None], [[]], TOP))) for q in queries[:30]]
    tell("exact: a query", milliseconds=1e3 * statistics.median(one), best=1e3 * min(one), n=len(one))
    mask = torch.arange(len(vectors)) % 10 == 0
    one = [took(lambda q=q: list(exact(vectors, q[None], [[]], TOP, mask))) for q in queries[:10]]
    tell("exact: a query with a condition", milliseconds=1e3 * statistics.median(one), best=1e3 * min(one), n=len(one))
    batches = [took(lambda: list(exact(vectors, queries, [[]] * len(queries), TOP))) for _ in range(3)]
    tell("exact: queries a second", median=len(queries) / statistics.median(batches), best=len(queries) / min(batches))
    found = [set(rows.tolist()) for _, rows in exact(vectors, queries, [[]] * len(queries), TOP)]
    tell("exact: recall", recall=recall(found, truth))


def by_index(path: Path, queries: torch.Tensor, truth: list[set[int]]) -> None:
    began = time.process_time()
    stages: dict[str, float] = {}

    def told(what: str, done: int, total: int) -> None:
        stages[what] = time.process_time() - began

    index = index_of(path, told, print)
    tell("index: built", seconds=time.process_time() - began, stages=stages, peak_gb=peak())
    began = time.process_time()
    index = index_of(path, silent, print)
    size = sum(file.stat().st_size for file in path.with_name(f"{path.name}.index").iterdir())
    tell("index: opened", seconds=time.process_time() - began, gb=size / 1e9)
    for probes in sorted({8, 16, 32, 64, index.probes}):
        measure(f"index: {probes} lists", lambda q: next(iter(index.nearest(q[None], [[]], TOP, probes=probes)))[1].tolist(), queries, truth)  # fmt: skip # noqa: E501, B023


def measure(name: str, ask: Callable[[torch.Tensor], list[int]], queries: torch.Tensor, truth: list[set[int]]) -> None:
    """Twice over the queries, of which the second counts: pages are in memory then."""
    for _ in range(2):
        times, found = [], []
        for query in queries:
            began = time.process_time()
            found.append(set(ask(query)))
            times.append(1e3 * (time.process_time() - began))
    spread = np.percentile(times, [10, 50, 90]).round(2).tolist()
    tell(name, milliseconds=spread, recall=recall(found, truth), peak_gb=peak())


def rivals(path: Path, queries: torch.Tensor, truth: list[set[int]], graph: int) -> None:
    with opened_table(path) as file:
        vectors = vectors_of(file, path)
    try:
        import faiss
    except ImportError:
        tell("faiss is not installed")
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())
        count = round(2 * len(vectors) ** 0.5)
        quantizer = faiss.IndexFlatIP(vectors.shape[1])
        kind = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, vectors.shape[1], count, kind, faiss.METRIC_INNER_PRODUCT)
        draw = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 40 * count), replace=False)
        tell("faiss: centres", seconds=took(lambda: index.train(vectors[draw])), lists=count)
        tell("faiss: lists and codes", seconds=took(lambda: index.add(vectors)))
        for probes in (8, 16, 32, 64):
            index.nprobe = probes
            measure(f"faiss: {probes} lists", reranked(vectors, lambda q: index.search(q[None].numpy(), 200)[1][0]), queries, truth)  # fmt: skip # noqa: E501
    some, queries = vectors[:graph], queries
    best = [set(row) for row in (queries @ torch.from_numpy(some).T).topk(TOP).indices.tolist()]
    try:
        from usearch.index import Index as Graph
    except ImportError:
        tell("usearch is not installed")
    else:
        for kind in ("i8", "f16"):
            graph_of = Graph(ndim=some.shape[1], metric="ip" if kind == "f16" else "cos", dtype=kind)
            seconds = took(lambda: graph_of.add(np.arange(len(some)), some, threads=torch.get_num_threads()))  # noqa: B023
            tell(f"usearch {kind}: built", seconds=seconds, rows=len(some), gb=graph_of.memory_usage / 1e9)
            measure(f"usearch {kind}", reranked(some, lambda q: graph_of.search(q.numpy(), 100).keys), queries, best)  # noqa: B023


def reranked(vectors: np.ndarray, ask: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], list[int]]:
    """The best of the candidates by their own rows."""

    def asked(query: torch.Tensor) -> list[int]:
        candidates = np.asarray(ask(query)).astype(np.int64)
        candidates = candidates[candidates >= 0]
        return candidates[np.argsort(-(vectors[candidates] @ query.numpy()))[:TOP]].tolist()

    return asked


def recall(found: list[set[int]], truth: list[set[int]]) -> float:
    return round(sum(len(one & other) for one, other in zip(found, truth)) / sum(map(len, truth)), 4)


def took(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def tell(what: str, **numbers: object) -> None:
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in numbers.items()}
    print(json.dumps({"what": what, **rounded}), flush=True)


if __name__ == "__main__":
    main()
