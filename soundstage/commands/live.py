"""`soundstage live`: captions in the terminal and in a file while it is being said."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from contextlib import ExitStack, aclosing, suppress
from pathlib import Path
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from soundstage.captions.sdh import NEVER_SHOWN
from soundstage.commands.live_output import GrowingFile, growing_file
from soundstage.commands.live_source import Pieces, Source
from soundstage.live_client import LiveClient, LiveRequest
from soundstage.types import JsonObject

_METER_CELLS = 24
_METER_FLOOR_DB = -60.0
_LOUD_DBFS, _CLIPPING_DBFS = -6.0, -1.0
"""Where the meter turns yellow and red. Source: EBU R 128 allows a true peak of -1 dBTP."""


class Display(Protocol):
    """Shows what is told."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""

    def show(self, event: JsonObject) -> None:
        """Take an event."""


class JsonLines:
    """Every event on a line, for programs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, event: JsonObject) -> None:
        """Print it at once: whoever reads a pipe is live too."""
        sys.stdout.write(f"{json.dumps(event, ensure_ascii=False)}\n")
        sys.stdout.flush()


class PlainLines:
    """What was said and heard, line by line, where there is no terminal."""

    def __init__(self, errors: Console) -> None:
        self._errors = errors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, event: JsonObject) -> None:
        """Print what is for good."""
        if event["type"] == "warning":
            self._errors.print(_warning(event))
        elif (line := line_of(event)) is not None:
            print(line.plain, flush=True)


class Screen:
    """What was said and heard scrolls; below it stands what is being said, and how loud it is."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._bottom = Bottom()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(Text())
        self._live.__exit__(None, None, None)

    def show(self, event: JsonObject) -> None:
        """Scroll or replace."""
        if event["type"] == "warning":
            self._live.console.print(_warning(event))
        elif (line := line_of(event)) is not None:
            self._live.console.print(line)
        self._bottom.heed(event)
        self._live.update(Group(*self._bottom.lines), refresh=True)


class Bottom:
    """What stands below: what is being said, how loud it is, and what sounds."""

    def __init__(self) -> None:
        self._partial = Text()
        self._meter = Text()
        self._sounding: dict[int, str] = {}

    def heed(self, event: JsonObject) -> None:
        """Take note of an event."""
        match event["type"]:
            case "partial":
                self._partial = Text.assemble(event["committed"], " ", (event["tentative"], "dim"))
            case "final":
                self._partial = Text()
            case "sound" if event["state"] == "started" and event["label"] not in NEVER_SHOWN:
                self._sounding[event["sound"]] = event["label"].replace("_", " ")
            case "sound":
                self._sounding.pop(event["sound"], None)
            case "levels":
                self._meter = meter(event)

    @property
    def lines(self) -> tuple[Text, Text]:
        """As they are drawn."""
        sounding = ", ".join(sorted(set(self._sounding.values())))
        return self._partial, Text.assemble(self._meter, "  ", (sounding, "cyan"))


def meter(levels: JsonObject) -> Text:
    """How loud the last second was: a bar of its sample peak, and its loudness."""
    peak, loudness = levels["sample_peak_dbfs"], levels["momentary_lufs"]
    share = 0.0 if peak is None else min(1.0, max(0.0, 1 - peak / _METER_FLOOR_DB))
    colour = "green"
    if peak is not None and peak > _LOUD_DBFS:
        colour = "red" if peak > _CLIPPING_DBFS else "yellow"
    n_cells = round(share * _METER_CELLS)
    figure = "silence" if loudness is None else f"{loudness:.1f} LUFS"
    return Text.assemble(
        (_clock(levels["end_s"]), "dim"),
        "  ",
        ("━" * n_cells, colour),
        ("━" * (_METER_CELLS - n_cells), "bright_black"),
        (f"  {figure}", "dim"),
    )


def line_of(event: JsonObject) -> Text | None:
    """The line of an event that is for good; None for others."""
    if event["type"] == "final":
        return Text.assemble((_clock(event["start_s"]), "dim"), "  ", event["text"])
    if event["type"] == "caption" and event["is_sound"]:
        return Text.assemble((_clock(event["start_s"]), "dim"), "  ", (" ".join(event["lines"]), "cyan"))
    return None


def _warning(event: JsonObject) -> str:
    return f"[yellow]{escape(event['code'])}:[/yellow] {escape(event['message'])}"


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(int(time_s), 60)
    return f"{minutes // 60:d}:{minutes % 60:02d}:{seconds:02d}"


class Session:
    """One source, sent to a service and shown, until it ends or the person at the keyboard ends it.

    The first Ctrl-C, or SIGTERM, ends the source: what was said before is still told. The second ends at once.

    Args:
        client: Of the service.
        display: For people or programs.
        output: A file that grows, of one of GROWING_FORMATS, made once the stream begins; None writes none.
        stopped: Ends the source.
    """

    def __init__(self, client: LiveClient, display: Display, output: Path | None, stopped: threading.Event) -> None:
        self._client = client
        self._display = display
        self._output = output
        self._stopped = stopped
        self._was_interrupted = False

    def run(self, source: Source, request: LiveRequest) -> None:
        """Listen.

        Raises:
            KeyboardInterrupt: The second Ctrl-C.
            ServiceUnreachable: Nothing answers.
            ServiceError: What the service answered.
            SourceError: The source broke; what was said before was told.
            OSError: The output cannot be written.
        """
        try:
            asyncio.run(self._listen(source, request))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    def warn(self, code: str, message: str) -> None:
        """Show a warning of this side; any thread may."""
        self._display.show({"type": "warning", "code": code, "message": message})

    async def _listen(self, source: Source, request: LiveRequest) -> None:
        pieces = Pieces(source.pieces, self._stopped)
        self._heed_signals(pieces)
        events = self._client.stream(aiter(pieces), request, can_wait=not source.is_live)
        file: GrowingFile | None = None
        with ExitStack() as stack:
            async with aclosing(events):
                async for event in events:
                    if self._output is not None and file is None:
                        file = growing_file(self._output)
                        stack.callback(file.close)
                    if file is not None:
                        file.write(event)
                    self._display.show(event)

    def _heed_signals(self, pieces: Pieces) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            if self._was_interrupted:
                task.cancel()
                return
            self._was_interrupted = True
            pieces.stop()
            self.warn("ending", "waiting for the last captions; again to end at once")

        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # on Windows, where the first Ctrl-C ends at once
                loop.add_signal_handler(number, interrupt)
