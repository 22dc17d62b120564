"""Calls from one deployment to another: inline or by reference, with a deadline, and with our own errors.

Serve sends small arguments through gRPC and takes object references for large ones; a replica that dies takes its
calls with it, and since no stage keeps anything, they are made again once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from soundstage.errors import DeadlineExceeded, InternalError, Overloaded, ServiceError

N_ATTEMPTS = 2

_log = logging.getLogger(__name__)


def to_service_error(error: Exception) -> ServiceError:
    """What a failed call means to the client."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    match error:
        case ServiceError():
            return error
        case BackPressureError():
            return Overloaded("the service is busy; try again after the time in Retry-After")
        case RayActorError() | DeploymentUnavailableError():
            return Overloaded("a replica went away; try again after the time in Retry-After")
        case TimeoutError():
            return DeadlineExceeded("a stage took longer than it may; send shorter audio or try later")
        case _:
            return InternalError(f"{type(error).__name__}: {error}")


async def call(
    handle: DeploymentHandle[Any],
    method: str,
    *args: object,
    n_bytes: int = 0,
    max_inline_bytes: int = 0,
    timeout_s: float,
) -> Any:
    """Call a method of another deployment and wait for its result.

    Args:
        handle: The deployment.
        method: Its name.
        args: The first may be large.
        n_bytes: About how large it is.
        max_inline_bytes: Larger ones go through Ray's object store.
        timeout_s: For all attempts together.

    Raises:
        ServiceError: The call failed, was refused, or took too long.
    """
    bound, args = await _bind(handle, args, n_bytes > max_inline_bytes, method_name=method)
    try:
        async with asyncio.timeout(timeout_s):
            for attempt in range(1, N_ATTEMPTS + 1):
                response: Any = bound.remote(*args)
                try:
                    return await response
                except asyncio.CancelledError:
                    response.cancel()
                    raise
                except RayActorError:
                    if attempt == N_ATTEMPTS:
                        raise
                    _log.warning("a replica went away in %s; trying again", method)
    except Exception as e:
        raise to_service_error(e) from e


async def call_all(handle: DeploymentHandle[Any], method: str, *args: object, timeout_s: float) -> list[Any]:
    """Call a method of every replica of another deployment; those that fail are left out.

    Raises:
        ServiceError: There is none that answers.
    """
    try:
        answers = await handle.broadcast(method, *args).results_async(timeout_s=timeout_s, return_exceptions=True)
    except TimeoutError:
        # One that hangs must not hide the others.
        return [await call(handle, method, *args, timeout_s=timeout_s)]
    except Exception as e:
        raise to_service_error(e) from e
    good = [answer for answer in answers if not isinstance(answer, Exception)]
    if not good:
        raise to_service_error(answers[0])
    return good


async def stream(
    handle: DeploymentHandle[Any], method: str, *args: object, n_bytes: int, max_inline_bytes: int
) -> AsyncGenerator[Any, None]:
    """Call a generator method of another deployment; items as they come.

    The call is made again if its replica goes away before the first item; after it, the client has to decide.
    Closing the iterator cancels the call.

    Raises:
        ServiceError: The call failed or was refused.
    """
    bound, args = await _bind(handle, args, n_bytes > max_inline_bytes, method_name=method, stream=True)
    for attempt in range(1, N_ATTEMPTS + 1):
        response: Any = bound.remote(*args)
        has_item, is_done = False, False
        try:
            async for item in response:
                has_item = True
                yield item
            is_done = True
        except RayActorError as e:
            is_done = True
            if has_item or attempt == N_ATTEMPTS:
                raise to_service_error(e) from e
            _log.warning("a replica went away in %s; trying again", method)
        except Exception as e:
            is_done = True
            raise to_service_error(e) from e
        else:
            return
        finally:
            if not is_done:
                response.cancel()


async def _bind(
    handle: DeploymentHandle[Any], args: tuple[object, ...], by_reference: bool, **options: Any
) -> tuple[DeploymentHandle[Any], tuple[object, ...]]:
    bound = handle.options(_by_reference=by_reference, **options)
    if by_reference:
        args = (await asyncio.to_thread(ray.put, args[0]), *args[1:])
    return bound, args
