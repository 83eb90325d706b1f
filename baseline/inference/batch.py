"""Model + photos by the thousand -> rows in a file, as they are made. Knows that file; knows no networks.

Rows stand in the order of the photos, and each is written whole or, by a job that was killed, cut off when it goes on.
Beside `predictions.csv` lies `predictions.csv.job.json`: which model and which options the rows are of. The rows of
`predictions.parquet` are kept in `predictions.parquet.rows.csv` until all are there. In `predictions.csv.shards` lies
what workers have made before its turn.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from baseline.errors import OutputError
from baseline.files import as_json, write
from baseline.inference.output import (
    Counts,
    Wanted,
    _as_parquet,
    _continued,
    _finished,
    _goes_on,
    _job_of,
    _opened,
    _path_in,
    _records,
    _Rows,
    _text,
)
from baseline.inference.shards import cleared, in_shards
from baseline.inference.workers import loaded, sent, spread_blocks
from baseline.parallel.executor import engine
from baseline.progress import Show

if TYPE_CHECKING:
    from baseline.inference.model import Block, Ensemble, Model

__all__ = ["write_predictions"]

SHARD_BATCHES = 16
"""That a worker is given at once, and that are lost with it."""


def write_predictions(
    model: Model | Ensemble,
    photos: Iterable[Any],
    out: str | Path | IO[bytes],
    wanted: Wanted | None = None,
    *,
    total: int = 0,
    processes: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    on: str = "",
    show: Show | None = None,
) -> Counts:
    """Writes a row a photo: `path, predicted, confidence, error`, and as wanted `class_1, probability_1` and so on, and
    `p_CLASS` for each class; shares have six decimals. A photo that cannot be read has a row that says why. In Parquet,
    which gets its name when all rows are there, what is empty is null.

    A job that was killed goes on with `resume` where it stopped, in whole batches, so that its file is in the end that
    of a job that was left alone. Memory stays the same however many photos there are.

    Args:
        photos: their paths or members of archives, taken from the iterable as they are needed.
        out: a file, or a binary stream.
        processes: so many, each with a GPU or its share of the CPU, predict with the model of the model's folder. As
            ever with several processes, a script that asks for them begins with `if __name__ == "__main__":`.
        total: how many photos there are, for the bar; 0 where that is not known.
        on: `"ray"` or a cluster (see `make_seeds`): workers predict, `processes` at once, or one for each CPU or GPU if
            that is 1. They make shards in a folder beside the file, each of which gets its name when it is whole; a
            killed worker costs its shard, which is made again. The file is that of one process with as many threads.

    Raises:
        OutputError: if the file exists and neither `overwrite` nor `resume` is given, cannot be written, is being
            written by another job, or holds rows of another model, other options or other photos.
        RecipeError: for bfloat16 on a CPU that has nothing for it, or if `on` is nothing that predicts.

    >>> write_predictions(load("runs/mine"), ["a.jpg", "b.jpg"], "out.csv", Wanted(top_k=3))  # doctest: +SKIP
    """
    wanted = wanted or Wanted()
    show = show or Show()
    path = Path(out).expanduser() if isinstance(out, str | Path) else None
    workers = engine(on, show)
    wanted = _settled(model, wanted, show)
    rows = _Rows(model.classes, wanted)
    if not isinstance(out, str | Path):
        if wanted.format == "parquet":
            raise OutputError("Parquet goes into a file. Give --out FILE.parquet.")
        if workers.far:
            raise OutputError("What --on predicts goes into a file. Give --out FILE.")
        out.write(rows.header)
        return _written(map(rows.of, _blocks(model, photos, wanted, processes)), out, Counts(), total, show)
    assert path is not None
    written = path.with_name(f"{path.name}.rows.csv") if wanted.format == "parquet" else path
    job = {"model": model.identity, **asdict(wanted)}
    goes_on = _goes_on(path, written, job, overwrite=overwrite, resume=resume)
    if goes_on and not written.exists():
        return _finished(path, iter(photos))
    shards, size = path.with_name(f"{path.name}.shards"), wanted.batch_size * (SHARD_BATCHES if workers.far else 1)
    with _opened(written) as file, workers:
        if not goes_on:
            file.truncate(0)
            if path != written:
                path.unlink(missing_ok=True)
            write(_job_of(path), as_json(job))
            cleared(shards)
        counts, rest = _continued(written, file, rows, iter(photos), size)
        pieces: Iterable[tuple[bytes, Counts]] = map(rows.of, _blocks(model, rest, wanted, processes))
        if workers.far:
            made = partial(_shard, tuple(model.folders), model.identity, wanted)
            named = ((str(photo), sent(photo)) for photo in rest)
            count = processes if processes > 1 else 0
            pieces = in_shards(named, size, made, partial(_kept, rows), shards, workers, counts.before, count)
        _written(pieces, file, counts, total, show)
        if written != path:
            file.flush()
            _as_parquet(written, path, rows.header)
        cleared(shards)
    return counts


def _settled(model: Model | Ensemble, wanted: Wanted, show: Show) -> Wanted:
    """With the number format that the passes will have."""
    name, why = model.settled_precision(wanted.precision)
    if wanted.precision == "auto":
        show.say(f"precision: {name} ({why})")
    return replace(wanted, precision=name)


def _blocks(model: Model | Ensemble, photos: Iterable[Any], wanted: Wanted, processes: int) -> Iterator[Block]:
    if processes < 2:
        return model.blocks(photos, **_options(wanted))
    return spread_blocks(model.folders, model.identity, photos, processes, **_options(wanted))


def _options(wanted: Wanted) -> dict[str, Any]:
    return {"tta": wanted.tta, "batch_size": wanted.batch_size, "precision": wanted.precision}


_loaded = lru_cache(maxsize=1)(loaded)


def _shard(folders: tuple[Path, ...], identity: str, wanted: Wanted, part: list[Any]) -> tuple[bytes, Counts]:
    """In a worker, which loads the model once: the rows of names and photos, and what is in them."""
    model, names, counts = _loaded(folders, identity), (name for name, _ in part), Counts()
    rows, content = _Rows(model.classes, wanted), []
    for block in model.blocks([photo for _, photo in part], **_options(wanted)):
        some, more = rows.of(replace(block, photos=list(islice(names, len(block.photos)))))
        content.append(some)
        counts.add(more)
    return b"".join(content), counts


def _kept(rows: _Rows, content: bytes, part: list[Any]) -> Counts | None:
    """What a shard that lies there counts, if its rows are of these names."""
    records = _records(io.BytesIO(content), quoted=rows.csv)
    same = [_path_in(record, rows) for record in records] == [_text(name) for name, _ in part]
    return Counts(before=len(part)) if same else None


def _written(pieces: Iterable[tuple[bytes, Counts]], file: IO[bytes], counts: Counts, total: int, show: Show) -> Counts:
    """Writes rows as they are made, and counts them."""
    began = time.perf_counter()
    with show.bar("predicting", total, "photos") as bar:
        bar.step(counts.before)
        for content, more in pieces:
            file.write(content)
            file.flush()
            counts.add(more)
            counts.seconds = time.perf_counter() - began
            bar.step(more.photos + more.before, f"{counts.photos / counts.seconds:,.0f} photos/s")
    return counts
