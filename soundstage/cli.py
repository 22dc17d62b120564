"""The command line: how each command is called. What the commands do is in soundstage.commands and beside it."""

from __future__ import annotations

import json
import os
import threading
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Column, Table

from soundstage import doctor as machine
from soundstage import sample as clip
from soundstage.captions.choice import TimecodeChoice
from soundstage.client import AnalysisRequest, OnProgress, ServiceClient, ServiceUnreachable
from soundstage.commands import keys
from soundstage.commands import models as model_commands
from soundstage.commands.analyze import Analyze, Job, Runner, local_analyzer, plan, report
from soundstage.commands.live import Display, JsonLines, PlainLines, Screen, Session
from soundstage.commands.live_output import GROWING_FORMATS, format_of
from soundstage.commands.live_source import SourceChoice, SourceError, SourceMisused, open_source
from soundstage.commands.outputs import OUTPUT_FORMATS
from soundstage.errors import ModelError, ServiceError
from soundstage.export import Precision
from soundstage.live.events import StreamOptions
from soundstage.live_client import LiveClient, LiveRequest
from soundstage.models import registry
from soundstage.models.registry import ModelSources
from soundstage.params import HintParams
from soundstage.pipeline import DEFAULT_MIN_SCORE, AnalysisOptions, Pipeline, Task, parse_tasks
from soundstage.speech.hints import Hints, parse_hints
from soundstage.speech.profanity import Profanity
from soundstage.types import Analysis

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLE = "SOUNDSTAGE_API_KEY"
"""Never an option: every user of a machine sees the arguments of every process."""
DEFAULT_JOBS = 4
STDOUT = Path("-")


class ExitCode:
    """What the shell is told; 2 is also what the parser of the command line answers."""

    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


def _examples(*lines: str, notes: tuple[str, ...] = ()) -> str:
    # click wraps what follows a paragraph's \b not at all.
    examples = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
    return "\n\n".join([examples, *notes])


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="What is said, what is heard, how loud, and when.",
    epilog=_examples(
        "soundstage sample sample.wav", "soundstage analyze sample.wav --format json,sdh_srt", "soundstage doctor"
    ),
)
models_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The models on this machine.")
keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="API keys of the service.")
app.add_typer(models_app, name="models", epilog=_examples("soundstage models fetch", "soundstage models list"))
app.add_typer(keys_app, name="keys", epilog=_examples("soundstage keys new newsroom"))

Url = Annotated[str, typer.Option(envvar="SOUNDSTAGE_URL", help="Of the service.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]

ModelArgument = Annotated[str, typer.Argument(help="The folder of a version, or a name as `list` shows it.")]
ModelVersion = Annotated[
    str | None, typer.Option("--version", help="A version or an alias; stable, else the newest, if left out.")
]


@app.command(
    epilog=_examples(
        "soundstage analyze take1.wav",
        "soundstage analyze rushes/ --format json,sdh_srt,edl --output reports/ --jobs 8",
        "soundstage analyze film.mov --format edl --start-timecode 10:00:00:00 --frame-rate 25",
        "soundstage analyze interview.mp3 --tasks speech --format srt --output -",
        "soundstage analyze take1.wav take2.wav --local --json",
        "soundstage analyze play.wav --hints 'Ophelia, Polonius, Elsinore' --profanity mask",
        notes=(
            "Exit codes: 0 all done, 1 some files failed, 2 wrong usage, 3 no service answers.",
            f"A key that the service asks for is read from the variable {API_KEY_VARIABLE}.",
        ),
    )
)
def analyze(
    files: Annotated[list[Path], typer.Argument(help="Media files, or folders of them.", metavar="FILE")],
    *,
    output_format: Annotated[
        str, typer.Option("--format", help=f"Any of {', '.join(OUTPUT_FORMATS)}, separated by commas.")
    ] = "json",
    tasks: Annotated[str, typer.Option(help="Any of speech, sounds, levels, separated by commas.")] = ",".join(Task),
    output: Annotated[
        Path | None, typer.Option(help="Folder for the outputs; beside each input if left out. - is standard output.")
    ] = None,
    url: Url = DEFAULT_URL,
    local: Annotated[bool, typer.Option("--local", help="Analyse in this process, without a service.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help=f"Files sent side by side; {DEFAULT_JOBS} if left out. Not with --local."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="ISO 639-1; only en so far.")] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Leave out tags and events that score less.")
    ] = None,
    hints: Annotated[
        str,
        typer.Option(help="Names and words that may be said, separated by commas, or a text file of them."),
    ] = "",
    profanity: Annotated[Profanity, typer.Option(help="mask leaves the first letter of swear words alone.")] = "keep",
    start_timecode: Annotated[
        str | None, typer.Option(help="HH:MM:SS:FF of the first frame (; before FF: drop frame). Else the file's.")
    ] = None,
    frame_rate: Annotated[float | None, typer.Option(help="Frames a second of the timecode. Else the file's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a file on standard output.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite/--no-overwrite",
            help="Replace outputs that are there. Else they are kept, what is missing is written, and a file whose"
            " outputs are all there is skipped.",
        ),
    ] = False,
) -> None:
    """Analyse media files, by the service or in this process."""
    to_stdout = output == STDOUT
    formats = _formats(output_format)
    try:
        options = AnalysisOptions(tasks=parse_tasks(tasks), language=language, hints=_hints(hints), profanity=profanity)
        timecode = TimecodeChoice(start_timecode=start_timecode, frame_rate=frame_rate)
    except ServiceError as e:
        raise typer.BadParameter(e.detail) from e
    if local and jobs is not None and jobs > 1:
        raise typer.BadParameter("--local analyses one file after the other; leave --jobs out")
    planned = plan(files, formats, None if to_stdout else output, to_stdout=to_stdout)
    if to_stdout and (len(planned) != 1 or len(formats) != 1 or as_json):
        raise typer.BadParameter("--output - takes one file, one format and no --json")
    stopped = threading.Event()
    console = Console(stderr=True)
    with ExitStack() as stack:
        run: Analyze
        if local:
            run = local_analyzer(_load(options, console), options, min_score)
        else:
            client = stack.enter_context(_client(url, stopped))
            request = AnalysisRequest(
                tasks=options.tasks,
                language=language,
                min_score=min_score,
                hints=options.hints,
                profanity=profanity,
            )

            def run(path: Path, on_progress: OnProgress) -> Analysis:
                return client.analyze(path, request, on_progress)

        runner = Runner(run, timecode=timecode, overwrite=overwrite, console=console, stopped=stopped)
        n_failed = _run(runner, planned, 1 if local else jobs or DEFAULT_JOBS, console, as_json=as_json)
    if runner.unreachable:
        raise typer.Exit(ExitCode.UNREACHABLE)
    if n_failed:
        raise typer.Exit(ExitCode.FAILED)


@app.command(
    epilog=_examples(
        "soundstage live mic",
        "soundstage live mic --output captions.vtt",
        "soundstage live take1.wav",
        "soundstage live rehearsal.mov --fast --output rehearsal.srt",
        "soundstage live http://radio.example/stream.mp3 --output radio.vtt",
        "soundstage live rtmp://0.0.0.0:1935/live --option listen=1",
        "soundstage live https://example.org/live.m3u8 --json | jq -r 'select(.type == \"final\").text'",
        "arecord -f S16_LE -r 48000 -t raw | soundstage live - --sample-rate 48000",
        "srt-live-transmit srt://:9000 file://con | soundstage live - --format mpegts",
        notes=(
            "Ctrl-C ends the source and shows the last captions; a second one ends at once.",
            "Exit codes: 0 it ended, 1 it or the service failed, 2 wrong usage, 3 no service answers, 130 cut off.",
            f"A key that the service asks for is read from the variable {API_KEY_VARIABLE}.",
        ),
    )
)
def live(
    source: Annotated[
        str,
        typer.Argument(
            help="A media file, - for standard input, mic or mic:NAME, or any URL or device of FFmpeg.",
            metavar="SOURCE",
        ),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(help=f"File that grows with the stream: {', '.join(f'.{name}' for name in GROWING_FORMATS)}."),
    ] = None,
    url: Url = DEFAULT_URL,
    input_format: Annotated[
        str | None,
        typer.Option("--format", help="FFmpeg's name of the container or kind of device, where it cannot tell."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for FFmpeg's protocol or device; any number of them.")
    ] = None,
    sample_rate: Annotated[int | None, typer.Option(min=8_000, max=192_000, help="Hz, of raw PCM.")] = None,
    channels: Annotated[int, typer.Option(min=1, max=64, help="Of raw PCM and of a microphone.")] = 1,
    encoding: Annotated[Literal["s16le", "f32le"], typer.Option(help="Of raw PCM.")] = "s16le",
    fast: Annotated[bool, typer.Option("--fast", help="Send a recording as fast as the service takes it.")] = False,
    reconnect: Annotated[
        bool, typer.Option("--reconnect/--no-reconnect", help="Open a live source again where it breaks or ends.")
    ] = True,
    tasks: Annotated[str, typer.Option(help="Any of speech, sounds, levels, separated by commas.")] = ",".join(Task),
    language: Annotated[str | None, typer.Option(help="ISO 639-1; only en so far.")] = None,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out sounds that score less.")
    ] = DEFAULT_MIN_SCORE,
    hints: Annotated[
        str,
        typer.Option(help="Names and words that may be said, separated by commas, or a text file of them."),
    ] = "",
    profanity: Annotated[Profanity, typer.Option(help="mask leaves the first letter of swear words alone.")] = "keep",
    as_json: Annotated[bool, typer.Option("--json", help="Every event on a line of standard output, as JSON.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--no-overwrite", help="Replace an output that is there.")
    ] = False,
) -> None:
    """Caption what is being said and heard, while it is."""
    errors = Console(stderr=True)
    stopped = threading.Event()
    choice = SourceChoice(
        name=source,
        input_format=input_format,
        options=_ffmpeg_options(option or []),
        sample_rate=sample_rate,
        n_channels=channels,
        encoding=encoding,
        is_fast=fast,
        reconnect=reconnect,
    )
    try:
        options = StreamOptions(
            tasks=parse_tasks(tasks), language=language, hints=_hints(hints), profanity=profanity, min_score=min_score
        )
        client = LiveClient(url, api_key=os.environ.get(API_KEY_VARIABLE))
    except (ServiceError, ValueError) as e:
        raise typer.BadParameter(str(e)) from e
    if output is not None and format_of(output) is None:
        raise typer.BadParameter(f"{output}: end its name in {', '.join(f'.{name}' for name in GROWING_FORMATS)}")
    if output is not None and output.exists() and not overwrite:
        raise typer.BadParameter(f"{output} is there already; say --overwrite to replace it")
    screen = Console()
    display: Display = JsonLines() if as_json else Screen(screen) if screen.is_terminal else PlainLines(errors)
    session = Session(client, display, output, stopped)
    try:
        opened = open_source(choice, stopped, lambda message: session.warn("source", message))
        request = LiveRequest(sample_rate=opened.sample_rate, n_channels=opened.n_channels, options=options)
        with display:
            session.run(opened, request)
    except SourceMisused as e:
        raise typer.BadParameter(str(e)) from e
    except ServiceUnreachable as e:
        _fail(str(e), ExitCode.UNREACHABLE)
    except (ServiceError, SourceError, OSError) as e:
        _fail(str(e))
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _ffmpeg_options(items: list[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in items]
    if wrong := next((item for item, pair in zip(items, pairs, strict=True) if not pair[0] or not pair[1]), None):
        raise typer.BadParameter(f"--option {wrong!r}: say NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _hints(text: str) -> Hints:
    try:
        with open(text, encoding="utf-8") as file:  # noqa: PTH123  # no Path of a long list
            text = file.read(HintParams().max_total_chars + 1)
    except UnicodeDecodeError as e:
        raise typer.BadParameter(f"--hints {text}: not a text file in UTF-8") from e
    except (OSError, ValueError):
        pass  # no file but the words themselves
    return parse_hints(text)


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in OUTPUT_FORMATS]
    if unknown or not names:
        raise typer.BadParameter(f"--format {text!r}: choose from {', '.join(OUTPUT_FORMATS)}, separated by commas")
    return names


def _client(url: str, stopped: threading.Event) -> ServiceClient:
    try:
        return ServiceClient(url, api_key=os.environ.get(API_KEY_VARIABLE), sleep=stopped.wait)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from e


def _load(options: AnalysisOptions, console: Console) -> Pipeline:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes on the machine are none of the user's business
    try:
        with console.status("loading models"):
            return Pipeline.load(options.tasks)
    except (ModelError, ImportError) as e:
        _fail(str(e))


def _run(runner: Runner, jobs: list[Job], n_jobs: int, console: Console, *, as_json: bool) -> int:
    n_failed = 0
    for outcome in runner.run(jobs, n_jobs):
        report(outcome, console, as_json=as_json)
        n_failed += outcome.status == "failed"
    return n_failed


@models_app.command("fetch", epilog=_examples("soundstage models fetch"))
def models_fetch() -> None:
    """Read the speech model out of the installed package moonshine-voice, once; nothing is downloaded."""
    from soundstage.speech import weights  # noqa: PLC0415  # only set-up needs what it imports

    try:
        folder = weights.fetch()
    except (ModelError, OSError) as e:
        _fail(str(e))
    typer.echo(f"{folder.card.name} {folder.card.version} in {folder.path}")


@models_app.command("list", epilog=_examples("soundstage models list", "soundstage models list --json"))
def models_list(as_json: AsJson = False) -> None:
    """Models that can be read, here and in the registry, with their versions, aliases and licences."""
    try:
        entries = list(model_commands.listed(ModelSources()))
    except ModelError as e:
        _fail(str(e))
    if as_json:
        _echo_json([entry.record for entry in entries])
        return
    table = Table(*(Column(title, overflow="fold") for title in ("name", "version", "aliases", "licence", "place")))
    for entry in entries:
        card = entry.card
        table.add_row(card.name, card.version, ", ".join(entry.aliases), card.licence, entry.place)
    Console().print(table)


@models_app.command(
    "show",
    epilog=_examples("soundstage models show soundstage-sounds", "soundstage models show moonshine-tiny-en --json"),
)
def models_show(
    name: Annotated[str, typer.Argument(help="As `soundstage models list` shows it.")],
    version: ModelVersion = None,
    as_json: AsJson = False,
) -> None:
    """The card of one model: where it comes from, what it hears, how well."""
    try:
        folder = registry.find(name, version)
    except ModelError as e:
        _fail(str(e))
    if as_json:
        _echo_json({**folder.card.model_dump(), "path": str(folder.path)})
        return
    typer.echo((folder.path / registry.README_NAME).read_text(encoding="utf-8"))
    typer.echo(f"Folder: {folder.path}")


@models_app.command(
    "verify",
    epilog=_examples(
        "soundstage models verify soundstage-sounds",
        "soundstage models verify soundstage-sounds --version stable --json",
        "soundstage models verify runs/models/soundstage-sounds/0.3.0",
        notes=("Exit codes: 0 it could serve, 1 it could not, 2 wrong usage.",),
    ),
)
def models_verify(model: ModelArgument, version: ModelVersion = None, as_json: AsJson = False) -> None:
    """Whether a model could serve: checksums, parameters, weights, labels, licence, and that it runs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    problem, folder = None, None
    try:
        folder = model_commands.named(model, version, ModelSources())
        model_commands.verify(folder)
    except (ModelError, ImportError) as e:
        problem = str(e)
    if as_json:
        path = str(folder.path) if folder is not None else None
        of_card = folder.card.model_dump(include={"name", "version"}) if folder is not None else {}
        _echo_json({"is_fit": problem is None, "problem": problem, "path": path, **of_card})
    elif folder is not None and problem is None:
        typer.echo(f"{folder.card.name} {folder.card.version} is intact and runs: {folder.path}")
    if problem is not None:
        _fail(problem)


@models_app.command(
    "promote",
    epilog=_examples(
        "soundstage models promote runs/models/soundstage-sounds/0.3.0",
        "soundstage models promote runs/models/soundstage-sounds/0.3.0 --to s3://models --alias candidate",
        "soundstage models promote soundstage-sounds --version 0.2.0 --force",
        notes=(
            "The last one goes back to a version that is there already. Services take it over by themselves.",
            "Exit codes: 0 it is live, 1 it was refused and nothing changed, 2 wrong usage.",
        ),
    ),
)
def models_promote(
    model: ModelArgument,
    *,
    version: ModelVersion = None,
    to: Annotated[
        str | None,
        typer.Option(help="Folder or URL of the registry; $SOUNDSTAGE_REGISTRY, else this user's own, if left out."),
    ] = None,
    alias: Annotated[str, typer.Option(help="What is to stand for it.")] = registry.STABLE,
    force: Annotated[bool, typer.Option("--force", help="Also where it is worse than what it replaces.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a model live: verify it, copy it into the registry, and let an alias stand for it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        sources = _sources(to)
        folder = model_commands.named(model, version, sources)
        promotion = model_commands.promote(folder, sources, alias=alias, force=force)
    except (ModelError, ImportError, OSError) as e:
        _fail(str(e))
    if as_json:
        _echo_json(promotion.record)
    else:
        typer.echo(str(promotion))


@models_app.command(
    "export",
    epilog=_examples(
        "soundstage models export soundstage-sounds --output serving/",
        "soundstage models export moonshine-tiny-en --output serving/ --precision float16 --json",
        notes=("Exit codes: 0 written, 1 not written and nothing left behind, 2 wrong usage.",),
    ),
)
def models_export(
    model: ModelArgument,
    output: Annotated[Path, typer.Option(help="Folder of TensorFlow Serving's models; <name>/<integer> is added.")],
    *,
    version: ModelVersion = None,
    precision: Annotated[Precision, typer.Option(help="Of the stored weights; it computes in float32.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Write a model for TensorFlow Serving: a graph that needs no Python."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its notes on the machine are none of the user's business
    try:
        with Console(stderr=True).status("reading the model") as status:
            folder = model_commands.named(model, version, ModelSources())
            from soundstage.export import saved_model  # noqa: PLC0415  # TensorFlow takes seconds to load

            exported = saved_model.export(folder, output, precision=precision, on_progress=status.update)
    except (ModelError, ImportError, OSError) as e:
        _fail(str(e))
    if as_json:
        _echo_json(asdict(exported))
    else:
        typer.echo(f"{exported.name} {exported.version} in {exported.path}, {exported.size_bytes / 1e6:.1f} MB")


def _sources(registry_url: str | None) -> ModelSources:
    try:
        return ModelSources(registry=registry_url)
    except ValidationError as e:
        # pydantic's own message would show the URL
        raise ModelError(str(e.errors()[0]["ctx"]["error"])) from e


@app.command(epilog=_examples("soundstage doctor", "soundstage doctor --json"))
def doctor(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """What this machine has and lacks, and what to do about it; exit code 1 where something needed is missing."""
    checks = machine.examine(url)
    if as_json:
        _echo_json([check.record for check in checks])
    else:
        machine.show(checks, Console())
    if not machine.is_fit(checks):
        raise typer.Exit(ExitCode.FAILED)


@keys_app.command(
    "new",
    epilog=_examples("soundstage keys new newsroom", "soundstage keys new newsroom --append api_keys.txt"),
)
def keys_new(
    name: Annotated[str, typer.Argument(help="Whom the key is for: letters, digits, '.', '_' and '-'.")],
    append: Annotated[
        Path | None, typer.Option(help="Add the line to this file, which only its owner may read.")
    ] = None,
) -> None:
    """Make an API key. It is shown once, on standard output; the service keeps its SHA-256 alone."""
    try:
        key, line = keys.new_key(name)
        if append is not None:
            keys.append_line(append, line)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from e
    except OSError as e:
        _fail(str(e))
    typer.echo(key)
    if append is None:
        typer.echo(line)
        typer.echo("The key, for the client, and its line for the service's file of keys.", err=True)
    else:
        typer.echo(f"The key, for the client; its line was added to {append}.", err=True)


@app.command(epilog=_examples("soundstage sample sample.wav"))
def sample(
    out: Annotated[Path, typer.Argument(help="The WAV file to write.", metavar="OUT.wav")],
) -> None:
    """Write a clip to try the service with: a reading, and sounds between and beside it."""
    try:
        truth = clip.write(out)
    except (clip.SpeechMissing, OSError) as e:
        _fail(str(e))
    typer.echo(f"{out}: {truth.duration_s:.1f} s")
    for sound in truth.sounds:
        typer.echo(f"  {sound.start_s:5.1f} to {sound.end_s:4.1f} s  {sound.label}")
    typer.echo(clip.LICENCE)


def _echo_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _fail(message: str, code: int = ExitCode.FAILED) -> NoReturn:
    typer.echo(f"failed: {message}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
