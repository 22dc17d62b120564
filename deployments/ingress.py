"""The front: HTTP in, the graph behind."""

from __future__ import annotations

import builtins
import sys
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve._private import logging_utils
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from deployments import logs
from deployments.answers import ServedModel
from deployments.api.routes import create_app
from deployments.auth import ApiKeys, is_loopback
from deployments.graph_calls import call, stream
from deployments.metrics import RequestMetrics
from deployments.settings import AppArgs, IngressConfig, changed
from soundstage.pipeline import AnalysisOptions
from soundstage.types import ChunkAnalysis, ClipSummary, EncodedAudio


class GraphEngine:
    """Analyses through the Preprocessor deployment."""

    def __init__(self, preprocessor: DeploymentHandle[Any], args: AppArgs) -> None:
        self._preprocessor = preprocessor
        self._args = args

    def analyze(
        self, audio: EncodedAudio, options: AnalysisOptions
    ) -> AsyncGenerator[ChunkAnalysis | ClipSummary, None]:
        """Each chunk as it is done, in order, then the summary."""
        return stream(
            self._preprocessor,
            "analyze",
            audio,
            options,
            n_bytes=len(audio.data),
            max_inline_bytes=self._args.max_inline_bytes,
        )

    async def models(self) -> list[ServedModel]:
        """What each replica of the model stages serves."""
        # Twice: a stage in which one replica hangs is asked again for another one.
        served: list[ServedModel] = await call(self._preprocessor, "models", timeout_s=2 * self._args.deadlines.probe_s)
        return served


@serve.ingress()
class Ingress:
    """Takes requests, checks them, and answers in the format that was asked for."""

    def __init__(self, preprocessor: DeploymentHandle[Any], args: AppArgs) -> None:
        _mend_print()
        logs.take_over()
        self._args = args
        self._engine = GraphEngine(preprocessor, args)
        self._keys = _read_keys(args)
        self._config: IngressConfig | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over new thresholds; requests that are under way keep the old ones."""
        self._config = changed(self._config, IngressConfig, user_config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(
            self._engine, self._args, self._keys, lambda: self._config or IngressConfig(), RequestMetrics()
        )


def _mend_print() -> None:
    """Give files their text back.

    Ray 2.60 replaces `print` in replicas by one that writes to any file but the terminal's the tuple of its arguments
    (ray/serve/_private/logging_utils.py, redirected_print); pysubs2 prints its subtitles into a file.
    """
    replaced = builtins.print

    def mended(*objects: object, file: Any = None, **options: Any) -> None:
        to_terminal = file in (None, sys.stdout, sys.stderr)
        (replaced if to_terminal else logging_utils.buildin_print)(*objects, file=file, **options)

    builtins.print = mended


def _read_keys(args: AppArgs) -> ApiKeys:
    """The keys that open the service.

    Raises:
        RuntimeError: There are none, and the service is to listen beyond this machine.
    """
    if args.auth.api_keys_file is not None:
        return ApiKeys.read(args.auth.api_keys_file)
    # Serve tells a replica nothing of where the proxy listens; its client is the one place that knows.
    client = _get_global_client()
    host = client.http_config.host if client is not None else None
    if not is_loopback(host):
        raise RuntimeError(
            f"the service listens on {host} without API keys: set args.auth.api_keys_file, or http_options.host to "
            "127.0.0.1"
        )
    return ApiKeys({})
