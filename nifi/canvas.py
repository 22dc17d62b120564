"""The flow in a running NiFi: deploy it, look after it, take it away.

NiFi itself carries out an upgrade: it is given the whole new definition, finds what differs, stops just that, changes
it and starts it again. Files in queues that stay are not touched; a queue that goes is emptied by letting the flow run
on, without new files, before it goes.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import nipyapi
from nipyapi import nifi as api
from nipyapi.nifi.rest import ApiException
from urllib3.exceptions import HTTPError

from nifi import flow
from nifi.differences import Difference, differences
from nifi.flow import Tuning

POLL_S = 0.5
VALIDATION_TIMEOUT_S = 60.0
REPLACE_TIMEOUT_S = 300.0
SPARE_THREADS = 16
"""Threads of NiFi for all that is not waiting for the service."""


class FlowError(RuntimeError):
    """NiFi cannot be reached or refuses; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What `deploy` did.

    Attributes:
        is_new: There was no flow before.
        changed: Parts, as far as they differed.
        parameters: Names of those that got another value.
    """

    is_new: bool
    changed: Sequence[Difference] = ()
    parameters: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The flow at a glance.

    Attributes:
        state: "running", "partly running", "stopped", or "invalid" where something has to be mended first.
        n_queued: Files in all queues, but for events that wait for the report.
        queues: Those in which files wait, the fullest first: name, files, bytes.
        groups: Each with its files in queues, active threads, and what it read, wrote in the last five minutes.
        problems: What is invalid, and why.
        bulletins: The newest last: time, level, source, message.
        differs: Whether the code builds another flow.
    """

    state: str
    n_queued: int
    queues: Sequence[tuple[str, int, int]] = ()
    groups: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[str] = ()
    bulletins: Sequence[tuple[str, str, str, str]] = ()
    differs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """How to get into a NiFi that asks who is there.

    Attributes:
        username: None where NiFi asks nobody.
        password: Of that user.
        ca_file: Who vouches for NiFi's certificate; None for the system's list.
    """

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None


class Canvas:
    """One NiFi.

    Args:
        url: Of its API, such as "http://127.0.0.1:8480/nifi-api".
        login: Where it asks for one.

    Raises:
        FlowError: It does not answer.
    """

    def __init__(self, url: str, login: Login | None = None) -> None:
        self.url = url.rstrip("/")
        login = login or Login()
        if not self.url.endswith("/nifi-api"):
            raise FlowError(f"{url} is not the address of NiFi's API; it ends in /nifi-api")
        if login.ca_file is not None:
            nipyapi.config.nifi_config.ssl_ca_cert = str(login.ca_file.absolute())
        # nipyapi would have each of a dozen tries told twice; the error says it once.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        with _told(f"no NiFi answers at {self.url}"):
            nipyapi.utils.set_endpoint(
                self.url,
                ssl=self.url.startswith("https"),
                login=login.username is not None,
                username=login.username,
                password=login.password,
            )
            self._root: str = nipyapi.canvas.get_root_pg_id()

    # --- what there is

    def group_id(self) -> str | None:
        """Of the flow; None where it is not deployed.

        Raises:
            FlowError: There are several of that name.
        """
        with _told("NiFi does not list its groups"):
            groups = api.ProcessGroupsApi().get_process_groups(self._root).process_groups
        found = [group.id for group in groups if group.component.name == flow.NAME]
        if len(found) > 1:
            raise FlowError(f"NiFi has {len(found)} groups called {flow.NAME}; remove those that are not this flow's")
        return found[0] if found else None

    def download(self) -> dict[str, Any]:
        """The definition of what runs.

        Raises:
            FlowError: The flow is not deployed.
        """
        with _told("NiFi does not export the flow"):
            text = api.ProcessGroupsApi().export_process_group(self._needed())
        definition: dict[str, Any] = json.loads(text) if isinstance(text, str) else text
        return definition

    def differences(self, tuning: Tuning | None = None) -> list[Difference]:
        """What deploying would change."""
        return differences(self.download(), flow.build(tuning), self._defaults(self._needed()))

    def status(self) -> Status:
        """The flow at a glance."""
        group = self._needed()
        with _told("NiFi does not tell of the flow"):
            api_flow = api.FlowApi()
            status = api_flow.get_process_group_status(group, recursive=True).process_group_status.aggregate_snapshot
            entity = api.ProcessGroupsApi().get_process_group(group)
            board = api_flow.get_bulletin_board(limit="20").bulletin_board
        n_running, n_stopped = entity.running_count, entity.stopped_count
        problems = self._problems(group)
        if problems:
            state = "invalid"
        elif not n_running:
            state = "stopped"
        else:
            state = "running" if not n_stopped else "partly running"
        queues = sorted(_queues(status), key=lambda queue: -queue[1])
        return Status(
            state=state,
            n_queued=sum(n_files for _, n_files, _ in queues),
            queues=queues,
            groups=[
                _told_group(child.process_group_status_snapshot) for child in status.process_group_status_snapshots
            ],
            problems=problems,
            bulletins=[_told_bulletin(entry) for entry in board.bulletins if entry.bulletin is not None],
            differs=bool(self.differences(self.tuning())),
        )

    def tuning(self) -> Tuning:
        """As deployed."""
        parts = {part.component.name: part.component for part in self._processors(self._needed())}
        ask = parts.get(flow.ASK)
        return Tuning() if ask is None else Tuning(concurrency=ask.config.concurrently_schedulable_task_count)

    def missing_parameters(self) -> list[str]:
        """Required ones without a value. NiFi itself starts without them."""
        values = self._parameter_values()
        return [each.name for each in flow.PARAMETERS if each.required and not values.get(each.name)]

    # --- what is done

    def deploy(self, values: Mapping[str, str], *, tuning: Tuning | None = None, drain_s: float = 600.0) -> Deployed:
        """Bring NiFi to what the code says; a flow that ran, runs again after.

        Args:
            values: Of parameters; those that are not named keep what they have.
            tuning: What NiFi takes no parameter for; None keeps what is deployed.
            drain_s: How long files may take to leave queues that go.

        Raises:
            FlowError: NiFi refuses, or files remain in a queue that would go.
        """
        unknown = sorted(set(values) - {parameter.name for parameter in flow.PARAMETERS})
        if unknown:
            raise FlowError(f"the flow has no parameter {', '.join(unknown)}")
        group = self.group_id()
        if group is None:
            tuning = tuning or Tuning()
            self._import(flow.build(tuning))
            self._grant_threads(tuning)
            return Deployed(is_new=True, parameters=self._set_parameters(values))
        tuning = tuning or self.tuning()
        wanted = flow.build(tuning)
        found = differences(self.download(), wanted, self._defaults(group))
        if found:
            was_running = bool(api.ProcessGroupsApi().get_process_group(group).running_count)
            if was_running:
                self._drain({each.identifier for each in found if each.action == "remove"}, drain_s)
            self._replace(group, wanted)
            self._grant_threads(tuning)
        parameters = self._set_parameters(values)
        if found and was_running:
            self.start()
        return Deployed(is_new=False, changed=found, parameters=parameters)

    def start(self) -> None:
        """Start every part.

        Raises:
            FlowError: A parameter is missing, or a part is invalid.
        """
        group = self._needed()
        missing = self.missing_parameters()
        if missing:
            raise FlowError(f"not started: {', '.join(missing)} not set; give them to `deploy`")
        with _told("NiFi does not start the flow"):
            nipyapi.canvas.schedule_all_controllers(group, True)
            problems = self._problems(group)
            if problems:
                raise FlowError("not started:\n" + "\n".join(problems))
            _schedule(group, "RUNNING")
            self._wait(lambda: not api.ProcessGroupsApi().get_process_group(group).stopped_count, "does not start")

    def stop(self) -> None:
        """Stop every part; files stay in their queues."""
        group = self._needed()
        with _told("NiFi does not stop the flow"):
            _schedule(group, "STOPPED")
            self._wait(lambda: self._is_still(group), "does not stop", REPLACE_TIMEOUT_S)

    def report(self) -> None:
        """Write the report of what was since the last one now, not at midnight."""
        part = next(each for each in self._processors(self._needed()) if each.component.name == flow.CLOSE_DAY)
        config = part.component.config
        at_midnight = {"scheduling_strategy": config.scheduling_strategy, "scheduling_period": config.scheduling_period}
        with _told("NiFi does not run the report"):
            nipyapi.canvas.schedule_processor(part.id, "STOPPED")
            try:
                # NiFi does not run a part once that is scheduled by a calendar.
                _reschedule(part.id, scheduling_strategy="TIMER_DRIVEN", scheduling_period="1 hour")
                nipyapi.canvas.schedule_processor(part.id, "RUN_ONCE")
                self._wait(lambda: _is_stopped(part.id), "does not run the report")
            finally:
                _reschedule(part.id, **at_midnight)
                nipyapi.canvas.schedule_processor(part.id, "RUNNING")

    def remove(self, *, drop: bool = False) -> int:
        """Take the flow out of NiFi, with its parameters and the events since the last report.

        Args:
            drop: Also where files wait in its queues; they are lost to the flow.

        Returns:
            How many files were dropped.

        Raises:
            FlowError: Files wait in its queues.
        """
        group = self._needed()
        before = self.status()
        if before.n_queued and not drop:
            raise _waiting(before.n_queued)
        self.stop()
        # Queues are read one after the other: a file that went from one to the next meanwhile was in neither.
        n_queued = self.status().n_queued
        if n_queued and not drop:
            if before.state != "stopped":
                self.start()
            raise _waiting(n_queued)
        with _told("NiFi does not remove the flow"):
            nipyapi.canvas.schedule_all_controllers(group, False)
            nipyapi.canvas.purge_process_group(nipyapi.canvas.get_process_group(group, "id"))
            nipyapi.canvas.delete_process_group(nipyapi.canvas.get_process_group(group, "id"))
            nipyapi.parameters.delete_parameter_context(self._context())
        return n_queued

    # --- how

    def _needed(self) -> str:
        group = self.group_id()
        if group is None:
            raise FlowError("the flow is not deployed in this NiFi; python -m nifi deploy")
        return group

    def _import(self, wanted: dict[str, Any]) -> None:
        with _told("NiFi does not take the flow"):
            api.ProcessGroupsApi().import_process_group(
                self._root,
                body=api.ProcessGroupUploadEntity(
                    group_name=flow.NAME,
                    position_dto=api.PositionDTO(x=0.0, y=0.0),
                    revision_dto=api.RevisionDTO(version=0),
                    flow_snapshot=wanted,
                ),
            )

    def _replace(self, group: str, wanted: dict[str, Any]) -> None:
        groups = api.ProcessGroupsApi()
        with _told("NiFi does not take the new flow"):
            revision = groups.get_process_group(group).revision
            body = api.ProcessGroupImportEntity(process_group_revision=revision, versioned_flow_snapshot=wanted)
            request = groups.initiate_replace_process_group(body=body, id=group).request
            try:
                self._wait(
                    lambda: groups.get_replace_process_group_request(request.request_id).request.complete,
                    "is not done with the new flow",
                    REPLACE_TIMEOUT_S,
                )
                reason = groups.get_replace_process_group_request(request.request_id).request.failure_reason
            finally:
                groups.delete_replace_process_group_request(request.request_id)
        if reason:
            raise FlowError(f"NiFi does not take the new flow: {reason}")

    def _drain(self, going: set[str], drain_s: float) -> None:
        """Let files leave the queues that go, while no new ones come."""
        group = self._needed()
        queues = [
            connection.id
            for connection in self._connections(group)
            if connection.component.versioned_component_id in going
        ]
        if not any(map(self._n_queued, queues)):
            return
        ingest = next(child.id for child in self._groups(group) if child.component.name == flow.INGEST)
        with _told("NiFi does not pause the flow"):
            _schedule(ingest, "STOPPED")
        deadline = time.monotonic() + drain_s
        while left := sum(map(self._n_queued, queues)):
            if time.monotonic() > deadline:
                self.start()
                raise FlowError(f"{left} files remain in queues that the new flow does not have; nothing was changed")
            time.sleep(POLL_S)

    def _n_queued(self, connection: str) -> int:
        with _told("NiFi does not count its queues"):
            snapshot = api.FlowApi().get_connection_status(connection).connection_status.aggregate_snapshot
        n_queued: int = snapshot.flow_files_queued
        return n_queued

    def _grant_threads(self, tuning: Tuning) -> None:
        """NiFi has ten threads for everything; requests that wait would take them all."""
        needed = tuning.concurrency + SPARE_THREADS
        with _told("NiFi does not grant threads"):
            controller = api.ControllerApi()
            config = controller.get_controller_config()
            if config.component.max_timer_driven_thread_count < needed:
                config.component.max_timer_driven_thread_count = needed
                controller.update_controller_config(config)

    def _context(self) -> Any:
        with _told("NiFi does not list its parameters"):
            return nipyapi.parameters.get_parameter_context(flow.CONTEXT, greedy=False)

    def _parameter_values(self) -> dict[str, str | None]:
        context = self._context()
        if context is None:
            return {}
        return {each.parameter.name: each.parameter.value for each in context.component.parameters}

    def _set_parameters(self, values: Mapping[str, str]) -> list[str]:
        """Set those that differ; a sensitive one is set whenever it is given, since NiFi does not show it."""
        current = self._parameter_values()
        known = {parameter.name: parameter for parameter in flow.PARAMETERS}
        changed = [name for name, value in values.items() if known[name].sensitive or current.get(name) != value]
        if changed:
            context = self._context()
            context.component.parameters = [
                nipyapi.parameters.prepare_parameter(
                    name, values[name], description=known[name].description, sensitive=known[name].sensitive
                )
                for name in changed
            ]
            with _told("NiFi does not take the parameters"):
                nipyapi.parameters.update_parameter_context(context)
        return changed

    def _problems(self, group: str) -> list[str]:
        """What is invalid, once NiFi has looked at every part."""
        parts: list[Any] = []

        def are_known() -> bool:
            parts[:] = [*self._processors(group), *self._services(group)]
            return all(part.component.validation_status != "VALIDATING" for part in parts)

        self._wait(are_known, "is still validating", VALIDATION_TIMEOUT_S)
        return [
            f"{part.component.name}: {'; '.join(_without_stopped_services(part.component.validation_errors))}"
            for part in parts
            if part.component.validation_status == "INVALID"
            and _without_stopped_services(part.component.validation_errors)
        ]

    def _is_still(self, group: str) -> bool:
        entity = api.ProcessGroupsApi().get_process_group(group)
        status = api.FlowApi().get_process_group_status(group).process_group_status.aggregate_snapshot
        return not entity.running_count and not status.active_thread_count

    def _defaults(self, group: str) -> dict[str, dict[str, str | None]]:
        def of(descriptors: Mapping[str, Any] | None) -> dict[str, str | None]:
            return {name: each.default_value for name, each in (descriptors or {}).items()}

        return {
            **{
                each.component.versioned_component_id: of(each.component.config.descriptors)
                for each in self._processors(group)
            },
            **{each.component.versioned_component_id: of(each.component.descriptors) for each in self._services(group)},
        }

    def _processors(self, group: str) -> list[Any]:
        with _told("NiFi does not list the flow"):
            found: list[Any] = api.ProcessGroupsApi().get_processors(group, include_descendant_groups=True).processors
        return found

    def _services(self, group: str) -> list[Any]:
        with _told("NiFi does not list the flow"):
            found: list[Any] = (
                api.FlowApi()
                .get_controller_services_from_group(
                    group, include_ancestor_groups=False, include_descendant_groups=True
                )
                .controller_services
            )
        return found

    def _groups(self, group: str) -> list[Any]:
        with _told("NiFi does not list the flow"):
            found: list[Any] = api.ProcessGroupsApi().get_process_groups(group).process_groups
        return found

    def _connections(self, group: str) -> list[Any]:
        with _told("NiFi does not list the flow"):
            found: list[Any] = list(api.ProcessGroupsApi().get_connections(group).connections)
        for child in self._groups(group):
            found += self._connections(child.id)
        return found

    def _wait(self, is_done: Callable[[], bool], complaint: str, timeout_s: float = VALIDATION_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_done():
            if time.monotonic() > deadline:
                raise FlowError(f"NiFi {complaint}")
            time.sleep(POLL_S)


def _schedule(group: str, state: Literal["RUNNING", "STOPPED"]) -> None:
    api.FlowApi().schedule_components(id=group, body=api.ScheduleComponentsEntity(id=group, state=state))


def _reschedule(processor: str, **schedule: str) -> None:
    entity = nipyapi.canvas.get_processor(processor, "id")
    nipyapi.canvas.update_processor(entity, update=api.ProcessorConfigDTO(**schedule))


def _is_stopped(processor: str) -> bool:
    is_stopped: bool = api.ProcessorsApi().get_processor(processor).status.run_status == "Stopped"
    return is_stopped


def is_local(url: str) -> bool:
    """Whether a URL is of this machine."""
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@contextmanager
def _told(complaint: str) -> Iterator[None]:
    try:
        yield
    except ApiException as e:
        detail = e.body or e.reason or ""
        raise FlowError(f"{complaint}: {detail if isinstance(detail, str) else detail.decode()}") from e
    except (HTTPError, ConnectionError, ValueError) as e:
        raise FlowError(f"{complaint}: {e}") from e


def _waiting(n_files: int) -> FlowError:
    return FlowError(f"{n_files} files wait in its queues; let them through, or drop them with --drop")


def _queues(status: Any) -> Iterator[tuple[str, int, int]]:
    for entity in status.connection_status_snapshots:
        queue = entity.connection_status_snapshot
        if queue.flow_files_queued and queue.name != flow.EVENTS:
            yield f"{queue.source_name} > {queue.destination_name}", queue.flow_files_queued, queue.bytes_queued
    for child in status.process_group_status_snapshots:
        yield from _queues(child.process_group_status_snapshot)


def _told_group(status: Any) -> dict[str, Any]:
    queues = list(_queues(status))
    return {
        "name": status.name,
        "queued": sum(n_files for _, n_files, _ in queues),
        "bytes": sum(n_bytes for *_, n_bytes in queues),
        "threads": status.active_thread_count,
        "in": status.flow_files_in,
        "out": status.flow_files_out,
    }


def _told_bulletin(entry: Any) -> tuple[str, str, str, str]:
    bulletin = entry.bulletin
    message = (bulletin.message or "").partition("\n")[0]
    return bulletin.timestamp, bulletin.level, bulletin.source_name, message


def _without_stopped_services(errors: Sequence[str] | None) -> list[str]:
    """Services are enabled by starting; until then every user of one says that it is disabled."""
    return [error for error in errors or () if not error.endswith("is disabled")]
