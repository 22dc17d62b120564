"""Measures word and character error rates on transcribed clips: in this process, or through a running service."""

from __future__ import annotations

import io
import json
import mimetypes
import os
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from soundstage.errors import ModelError, ServiceError
from soundstage.models import registry
from soundstage.pipeline import SPEECH_MODEL, AnalysisOptions, Pipeline, Task
from soundstage.types import SAMPLE_RATE, EncodedAudio
from training.acoustics import Samples
from training.data import BadFolder, Row, read_clip, read_meta
from training.voice_recognition import RECORDINGS_NAME
from training.voice_recognition.conditions import Condition, heard_in
from training.voice_recognition.scoring import Score, score

N_CONCURRENT = 8
TIMEOUT_S = 120.0
ALL = "all"

Write = Callable[[EncodedAudio], str]
"""What turns a clip into text."""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console(stderr=True)


def load(model: str, version: str | None, threads: int) -> Pipeline:
    """A model of the registry, warm, in this process."""
    # Imported here, since asking a running service needs no TensorFlow.
    from soundstage.speech.transcriber import Transcriber  # noqa: PLC0415

    transcriber = Transcriber(registry.find(model, version), n_threads=threads)
    transcriber.warm_up()
    return Pipeline(transcriber, None)


def written_by(pipeline: Pipeline) -> Write:
    """Writes in this process."""
    options = AnalysisOptions(tasks=frozenset({Task.SPEECH}))
    return lambda clip: " ".join(segment.text for segment in pipeline.analyze(clip, options).segments)


def asked_of(client: httpx.Client) -> Write:
    """Asks a service; raises BadFolder with its answer where it refuses."""

    def ask(clip: EncodedAudio) -> str:
        answer = client.post(
            "/v1/audio/transcriptions",
            files={"file": ("clip", bytes(clip.data), clip.media_type)},
            data={"model": "whisper-1", "response_format": "json"},
        )
        if answer.is_error:
            raise BadFolder(f"{client.base_url} answered {answer.status_code}: {answer.text[:300]}")
        text: str = answer.json()["text"]
        return text

    return ask


def clip_in(condition: Condition, row: Row) -> EncodedAudio:
    """The file itself where it is to be clean, else a WAV file of how it sounds."""
    if condition == Condition.CLEAN:
        media_type = mimetypes.guess_type(row.path.name)[0] or "application/octet-stream"
        return EncodedAudio(data=row.path.read_bytes(), media_type=media_type)
    return EncodedAudio(data=_wav(heard_in(condition, read_clip(row.path), row.path.name)), media_type="audio/wav")


def _wav(samples: Samples) -> bytes:
    data = io.BytesIO()
    scaled = samples / max(1.0, float(np.abs(samples).max(initial=0.0)))
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(scaled * 32_767).astype("<i2").tobytes())
    return data.getvalue()


def texts_of(rows: Sequence[Row], condition: Condition, write: Write, pool: ThreadPoolExecutor | None) -> Iterator[str]:
    """Text of each clip; through a pool several at once.

    Raises:
        BadFolder: A clip cannot be read, or is refused; the message names it.
    """

    def text(row: Row) -> str:
        try:
            return write(clip_in(condition, row))
        except (BadFolder, ServiceError) as e:
            raise BadFolder(f"{row.path.name}: {e}") from e

    return map(text, rows) if pool is None else pool.map(text, rows)


def figures_of(found: Score, wall_s: float, audio_s: float) -> dict[str, Any]:
    """What is printed of one condition."""
    substitutions, deletions, insertions, n_words = (int(n) for n in found.words.counts.sum(axis=0))
    low, high = found.words.interval
    return {
        "wer": found.words.rate,
        "wer_low": low,
        "wer_high": high,
        "cer": found.characters.rate,
        "substitutions": substitutions,
        "deletions": deletions,
        "insertions": insertions,
        "n_words": n_words,
        "n_clips": len(found.references),
        "real_time_factor": wall_s / audio_s,
    }


def conditions_of(text: str) -> list[Condition]:
    """Read "clean,telephone", or "all".

    Raises:
        BadFolder: Another name.
    """
    names = [name.strip() for name in text.split(",")]
    known = [str(condition) for condition in Condition]
    unknown = [name for name in names if name not in (*known, ALL)]
    if unknown:
        raise BadFolder(f"no condition is called {', '.join(unknown)}; there are {', '.join(known)}, and {ALL}")
    return [*Condition] if ALL in names else [Condition(name) for name in dict.fromkeys(names)]


def show_worst(found: Score, rows: Sequence[Row], n: int) -> None:
    """The sentences with the most wrong words."""
    for i in found.words.worst[:n]:
        n_wrong, n_words = int(found.words.counts[i, :3].sum()), int(found.words.counts[i, 3])
        console.print(f"{rows[i].path.name}: {n_wrong} of {n_words} words", highlight=False, markup=False)
        console.print(f"  said     {found.references[i]}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"  written  {found.hypotheses[i]}", highlight=False, markup=False, soft_wrap=True)


def duration_s(path: Path) -> float:
    """Length of a clip by its header."""
    import av  # noqa: PLC0415 - loads FFmpeg

    with av.open(path) as container:
        if container.duration is None:
            raise BadFolder(f"{path} does not say how long it is")
        return float(container.duration / av.time_base)


def chosen(data: Path, unseen_by: str | None, limit: int | None) -> list[Row]:
    """The clips that are asked for.

    Raises:
        BadFolder: The folder cannot be used, or has none of them.
        ModelError: There is no such model.
    """
    rows = read_meta(data, ["transcript"])
    if unseen_by is not None:
        known = learnt_by(registry.find(unseen_by))
        rows = [row for row in rows if row.values["filename"] not in known]
    if not rows:
        raise BadFolder(f"{unseen_by} knows every clip of {data / 'meta.csv'}")
    return rows[:limit]


def learnt_by(folder: registry.ModelFolder) -> set[str]:
    """Names of the recordings that a fine-tuned model has learnt from, or by which it was chosen.

    Raises:
        BadFolder: The model does not say.
    """
    names = folder.path / RECORDINGS_NAME
    if not names.is_file():
        raise BadFolder(f"{folder.path} holds no {RECORDINGS_NAME}: the model does not say what it was fine-tuned on")
    lines = (line.split("\t", 1) for line in names.read_text(encoding="utf-8").splitlines())
    return {name for split, name in lines if split != "test"}


@app.command(
    epilog="""
**Examples**

`python -m training.voice_recognition.evaluate --data ljspeech --conditions all --worst 10`

`SOUNDSTAGE_API_KEY=... python -m training.voice_recognition.evaluate --data ljspeech --url http://127.0.0.1:8000`
"""
)
def main(
    *,
    data: Annotated[Path, typer.Option(help="Clips in audio/ beside meta.csv with columns filename and transcript.")],
    url: Annotated[str | None, typer.Option(help="Ask the service there; its key is $SOUNDSTAGE_API_KEY.")] = None,
    model: Annotated[str, typer.Option(help="Model of the registry that writes in this process.")] = SPEECH_MODEL,
    version: Annotated[str | None, typer.Option(help="Of that model, or an alias.")] = None,
    conditions: Annotated[
        str, typer.Option(help=f"How the clips sound: any of {', '.join(Condition)}; or {ALL}.")
    ] = Condition.CLEAN.value,
    unseen_by: Annotated[
        str | None, typer.Option(help="Only clips that this model of the registry has not been fine-tuned on.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many clips, the first ones.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="Show so many of the sentences with the most errors.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print nothing but the figures.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="For TensorFlow, in this process.")] = 2,
) -> None:
    """Word and character error rate over all clips, after Whisper's normalisation of English.

    The last line printed is JSON, of the first condition: "wer" (a fraction; in 95 of 100 samples of such clips it
    lies between "wer_low" and "wer_high"), "cer", how many words are wrong, missing and invented, "real_time_factor"
    (seconds of work for a second of audio); and the same of all "conditions", where there are several. The conditions
    are made from the clips, the same each time. Through a service, 8 clips are under way at once.

    Source of the normalisation: Radford et al., arXiv:2212.04356, appendix C.
    """
    console.quiet = json_
    figures: dict[str, dict[str, Any]] = {}
    try:
        asked_for = conditions_of(conditions)
        rows = chosen(data, unseen_by, limit)
        audio_s = sum(duration_s(row.path) for row in rows)
        with ExitStack() as stack:
            pool = None
            if url is None:
                write = written_by(load(model, version, threads))
            else:
                key = os.environ.get("SOUNDSTAGE_API_KEY")
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                write = asked_of(stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)))
                pool = stack.enter_context(ThreadPoolExecutor(N_CONCURRENT))
            for condition in asked_for:
                texts = texts_of(rows, condition, write, pool)
                start = time.perf_counter()
                heard = [
                    text
                    for _, text in zip(track(rows, f"listening ({condition})", console=console), texts, strict=True)
                ]
                wall_s = time.perf_counter() - start
                found = score([row.values["transcript"] for row in rows], heard)
                figures[condition] = own = figures_of(found, wall_s, audio_s)
                console.print(
                    f"{condition}: {100 * own['wer']:.2f} % ({100 * own['wer_low']:.2f} to {100 * own['wer_high']:.2f})"
                    f", {own['substitutions']} words wrong, {own['deletions']} missing, {own['insertions']} invented",
                    highlight=False,
                    soft_wrap=True,
                )
                show_worst(found, rows, worst)
    except (BadFolder, ModelError, ServiceError, httpx.HTTPError) as e:
        Console(stderr=True).print(str(e), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from e
    print(json.dumps(figures[asked_for[0]] | ({"conditions": figures} if len(figures) > 1 else {})))


if __name__ == "__main__":
    app()
