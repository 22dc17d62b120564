"""Measures word error rate on transcribed clips: in this process, or through a running service."""

from __future__ import annotations

import json
import mimetypes
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import httpx
import jiwer
import typer
from rich.console import Console
from rich.progress import track
from whisper_normalizer.english import EnglishTextNormalizer

from soundstage.errors import ModelError, ServiceError
from soundstage.models import registry
from soundstage.pipeline import SPEECH_MODEL, AnalysisOptions, Pipeline, Task
from training.data import BadFolder, Row, read_meta

N_CONCURRENT = 8
TIMEOUT_S = 120.0

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console(stderr=True)


def load(model: str, threads: int) -> Pipeline:
    """A model of the registry, warm, in this process."""
    # Imported here, since asking a running service needs no TensorFlow.
    from soundstage.speech.transcriber import Transcriber  # noqa: PLC0415

    transcriber = Transcriber(registry.find(model), n_threads=threads)
    transcriber.warm_up()
    return Pipeline(transcriber, None)


def written(rows: list[Row], pipeline: Pipeline) -> Iterator[str]:
    """Text of each clip, written in this process."""
    options = AnalysisOptions(tasks=frozenset({Task.SPEECH}))
    for row in rows:
        yield " ".join(segment.text for segment in pipeline.analyze(row.path, options).segments)


def asked(rows: list[Row], client: httpx.Client, pool: ThreadPoolExecutor) -> Iterator[str]:
    """Text of each clip, as a service answers.

    Raises:
        BadFolder: The service refuses a clip; the message holds its answer.
    """

    def ask(row: Row) -> str:
        media_type = mimetypes.guess_type(row.path.name)[0] or "application/octet-stream"
        answer = client.post(
            "/v1/audio/transcriptions",
            files={"file": (row.path.name, row.path.read_bytes(), media_type)},
            data={"model": "whisper-1", "response_format": "json"},
        )
        if answer.is_error:
            raise BadFolder(f"{client.base_url} answered {answer.status_code} to {row.path.name}: {answer.text[:300]}")
        text: str = answer.json()["text"]
        return text

    return pool.map(ask, rows)


def duration_s(path: Path) -> float:
    """Length of a clip by its header."""
    import av  # noqa: PLC0415 - loads FFmpeg

    with av.open(path) as container:
        if container.duration is None:
            raise BadFolder(f"{path} does not say how long it is")
        return float(container.duration / av.time_base)


@app.command(
    epilog="""
**Examples**

`python -m training.voice_recognition.evaluate --data ljspeech`

`SOUNDSTAGE_API_KEY=... python -m training.voice_recognition.evaluate --data ljspeech --url http://127.0.0.1:8000`
"""
)
def main(
    *,
    data: Annotated[Path, typer.Option(help="Clips in audio/ beside meta.csv with columns filename and transcript.")],
    url: Annotated[str | None, typer.Option(help="Ask the service there; its key is $SOUNDSTAGE_API_KEY.")] = None,
    model: Annotated[str, typer.Option(help="Model of the registry that writes in this process.")] = SPEECH_MODEL,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many clips, the first ones.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print nothing but the figures.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="For TensorFlow, in this process.")] = 2,
) -> None:
    """Word error rate over all clips, after Whisper's normalisation of English.

    The last line printed is JSON: {"wer": fraction, "n_clips": number, "real_time_factor": seconds of work for a
    second of audio}. Through a service, 8 clips are under way at once.

    Source of the normalisation: Radford et al., arXiv:2212.04356, appendix C.
    """
    console.quiet = json_
    normalize = EnglishTextNormalizer()
    try:
        rows = read_meta(data, ["transcript"])[:limit]
        audio_s = sum(duration_s(row.path) for row in rows)
        with ExitStack() as stack:
            if url is None:
                texts = written(rows, load(model, threads))
            else:
                key = os.environ.get("SOUNDSTAGE_API_KEY")
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                client = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S))
                texts = asked(rows, client, stack.enter_context(ThreadPoolExecutor(N_CONCURRENT)))
            start = time.perf_counter()
            hypotheses = [
                normalize(text) for _, text in zip(track(rows, "listening", console=console), texts, strict=True)
            ]
            wall_s = time.perf_counter() - start
    except (BadFolder, ModelError, ServiceError, httpx.HTTPError) as e:
        Console(stderr=True).print(str(e), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from e
    references = [normalize(row.values["transcript"]) for row in rows]
    words = jiwer.process_words(references, hypotheses)
    console.print(f"{words.substitutions} words wrong, {words.deletions} missing, {words.insertions} invented")
    print(json.dumps({"wer": words.wer, "n_clips": len(rows), "real_time_factor": wall_s / audio_s}))


if __name__ == "__main__":
    app()
