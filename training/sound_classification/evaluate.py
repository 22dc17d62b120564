"""Measures a sound model on labelled clips: in this process, or through a running service."""

from __future__ import annotations

import json
import mimetypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import track

from soundstage.errors import ModelError
from soundstage.models import registry
from soundstage.models.runtime import limit_threads
from soundstage.pipeline import SOUND_MODEL
from soundstage.types import Waveform
from training.data import BadFolder, Row, read_clip, read_meta
from training.sound_classification.data.table import LABEL_COLUMNS, SEPARATOR

N_CONCURRENT = 8
TIMEOUT_S = 120.0

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console(stderr=True)

Scores = dict[str, float]


def listened(rows: list[Row], model: str, threads: int) -> Iterator[Scores]:
    """Tags of each clip, heard by a model of the registry in this process."""
    # Imported here, since asking a running service needs no TensorFlow.
    limit_threads(threads)
    from soundstage.sound.listener import SoundListener  # noqa: PLC0415

    listener = SoundListener(registry.find(model))
    for row in rows:
        scores = listener.listen([Waveform(samples=read_clip(row.path))])[0]
        yield dict(zip(scores.labels, scores.tags.tolist(), strict=True))


def asked(rows: list[Row], url: str) -> Iterator[Scores]:
    """Tags of each clip, as a service at this address answers.

    Raises:
        BadFolder: The service refuses a clip; the message holds its answer.
    """
    key = os.environ.get("SOUNDSTAGE_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    query = {"tasks": "sounds", "response_format": "json", "min_score": "0"}

    with (
        httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client,
        ThreadPoolExecutor(N_CONCURRENT) as pool,
    ):

        def ask(row: Row) -> Scores:
            media_type = mimetypes.guess_type(row.path.name)[0] or "application/octet-stream"
            answer = client.post(
                "/v1/analyze", params=query, content=row.path.read_bytes(), headers={"Content-Type": media_type}
            )
            if answer.is_error:
                raise BadFolder(f"{url} answered {answer.status_code} to {row.path.name}: {answer.text[:300]}")
            return {tag["label"]: tag["score"] for tag in answer.json()["tags"]}

        yield from pool.map(ask, rows)


def labelled(data: Path, folds: str | None) -> list[tuple[Row, set[str]]]:
    """Each clip of a folder, and its labels.

    Raises:
        BadFolder: The table cannot be used, or has no clip of these folds.
    """
    rows = read_meta(data, ["fold"] if folds else [])
    column = next((column for column in LABEL_COLUMNS if column in rows[0].values), None)
    if column is None:
        raise BadFolder(f"{data / 'meta.csv'} has no column {' or '.join(LABEL_COLUMNS)}")
    clips: dict[Path, tuple[Row, set[str]]] = {}
    for row in rows:
        if not folds or row.values["fold"] in folds.split(","):
            labels = {label.strip() for label in row.values[column].split(SEPARATOR)}
            clips.setdefault(row.path, (row, set()))[1].update(labels)
    if not clips:
        raise BadFolder(f"{data} holds no clip of folds {folds}")
    return list(clips.values())


@app.command(
    epilog="""
**Examples**

`python -m training.sound_classification.evaluate --data esc50`

`SOUNDSTAGE_API_KEY=... python -m training.sound_classification.evaluate --data esc50 --url http://127.0.0.1:8000`
"""
)
def main(
    *,
    data: Annotated[Path, typer.Option(help="Labelled clips, as for training: meta.csv and what it names.")],
    url: Annotated[str | None, typer.Option(help="Ask the service there; its key is $SOUNDSTAGE_API_KEY.")] = None,
    model: Annotated[str, typer.Option(help="Model of the registry that listens in this process.")] = SOUND_MODEL,
    folds: Annotated[str | None, typer.Option(help="Only clips of these folds, such as 1,2.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print nothing but the figures.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="For TensorFlow, in this process.")] = 2,
) -> None:
    """Share of clips whose best-scored tag, among the labels of meta.csv, is right.

    The last line printed is JSON: {"top1": fraction, "n_clips": number}.
    """
    console.quiet = json_
    try:
        clips = labelled(data, folds)
        rows = [row for row, _ in clips]
        labels = set[str]().union(*(own for _, own in clips))
        answers = asked(rows, url) if url is not None else listened(rows, model, threads)
        n_right, confusions = 0, dict[tuple[str, str], int]()
        for (_, truths), scores in zip(track(clips, "listening", console=console), answers, strict=True):
            candidates = {label: score for label, score in scores.items() if label in labels}
            best = max(candidates, key=candidates.__getitem__, default="nothing")
            n_right += best in truths
            if best not in truths:
                truth = ", ".join(sorted(truths))
                confusions[truth, best] = confusions.get((truth, best), 0) + 1
    except (BadFolder, ModelError, httpx.HTTPError) as e:
        Console(stderr=True).print(str(e), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from e
    for (truth, best), n in sorted(confusions.items(), key=lambda item: -item[1])[:10]:
        console.print(f"{n:4d}  {truth} taken for {best}")
    print(json.dumps({"top1": n_right / len(rows), "n_clips": len(rows)}))


if __name__ == "__main__":
    app()
