"""The parts of a flow as values, and the definition that NiFi imports.

A part's identity is its place and name: two builds of one flow have the same identifiers, so that NiFi itself finds
what differs between what it runs and what it is given. A renamed part is another part.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nipyapi import nifi as api

NIFI_VERSION = "2.3.0"
"""Whose processors are named. A NiFi of another version takes the ones that it has, where there is just one."""

_NAMESPACE = uuid.UUID("6f5e1c1e-6d6b-5b0c-9f4e-2f9f1c1b7a10")
_STANDARD, _UPDATE = "nifi-standard-nar", "nifi-update-attribute-nar"
_CACHE, _HTTP_MAP = "nifi-distributed-cache-services-nar", "nifi-http-context-map-nar"
_RECORDS = "nifi-record-serialization-services-nar"
_STANDARD_PACKAGE = "org.apache.nifi.processors.standard"
_TYPES: Mapping[str, tuple[str, str]] = {
    "UpdateAttribute": ("org.apache.nifi.processors.attributes", _UPDATE),
    "MapCacheServer": ("org.apache.nifi.distributed.cache.server.map", _CACHE),
    "MapCacheClientService": ("org.apache.nifi.distributed.cache.client", _CACHE),
    "StandardHttpContextMap": ("org.apache.nifi.http", _HTTP_MAP),
    "JsonTreeReader": ("org.apache.nifi.json", _RECORDS),
    "JsonRecordSetWriter": ("org.apache.nifi.json", _RECORDS),
}
"""Package and bundle of types that are not standard processors."""
_SAID: Mapping[str, Mapping[str, str]] = {
    "UpdateAttribute": {"Store State": "Do not store state"},
    "RouteOnAttribute": {"Routing Strategy": "Route to Property name"},
}
"""Properties on which relationships depend, with their defaults: where a flow that is replaced leaves them out, NiFi
takes them away and offers the relationships of another value, so that the part is invalid."""

PRIORITY = "org.apache.nifi.prioritizer.PriorityAttributePrioritizer"
OLDEST_FIRST = "org.apache.nifi.prioritizer.FirstInFirstOutPrioritizer"

Kind = Literal["PROCESSOR", "INPUT_PORT", "OUTPUT_PORT", "CONTROLLER_SERVICE"]
Spread = Literal["DO_NOT_LOAD_BALANCE", "ROUND_ROBIN", "SINGLE_NODE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """What differs from place to place.

    Attributes:
        name: As in `#{name}`.
        description: For who fills it in.
        value: None where there is no value that suits everybody.
        sensitive: NiFi keeps it encrypted and never shows it.
        required: The flow is not started without it.
    """

    name: str
    description: str
    value: str | None = None
    sensitive: bool = False
    required: bool = True


@dataclass(frozen=True, slots=True)
class Retry:
    """How a processor tries again by itself, with a wait that doubles.

    Attributes:
        relationships: Followed only once the tries are used up.
        count: Of tries after the first.
        max_wait: The longest wait; the first is the processor's penalty.
    """

    relationships: tuple[str, ...]
    count: int
    max_wait: str


@dataclass(frozen=True, slots=True)
class Room:
    """How much waits in a queue until what fills it is no longer run; 0 never stops it.

    Attributes:
        objects: Files.
        size: Of their content.
    """

    objects: int = 10_000
    size: str = "1 GB"


UNBOUNDED = Room(0, "0 B")
"""For ways back: what is in them was let in before."""


@dataclass(frozen=True, slots=True)
class Part:
    """A processor, port or service in a group.

    Attributes:
        model: As NiFi's API has it.
    """

    kind: Kind
    group: Group = field(repr=False)
    model: Any = field(repr=False)

    @property
    def id(self) -> str:
        """The same in every build."""
        identifier: str = self.model.identifier
        return identifier

    @property
    def name(self) -> str:
        """On the canvas."""
        name: str = self.model.name
        return name


class Group:
    """A process group under construction.

    Args:
        name: On the canvas.
        at: Position on the canvas, pixels.
        comments: What an operator reads in its properties.
        parent: None for the outermost.
    """

    def __init__(
        self, name: str, *, at: tuple[float, float] = (0, 0), comments: str = "", parent: Group | None = None
    ) -> None:
        self.name = name
        self.parent = parent
        self.path: str = f"{parent.path}/{name}" if parent else name
        self.id = _id("group", self.path)
        self.children: list[Group] = []
        self.parts: list[Part] = []
        self.model = api.VersionedProcessGroup(
            identifier=self.id,
            group_identifier=parent.id if parent else None,
            name=name,
            comments=comments,
            position=_position(at),
            component_type="PROCESS_GROUP",
            process_groups=[],
            processors=[],
            input_ports=[],
            output_ports=[],
            connections=[],
            labels=[],
            funnels=[],
            remote_process_groups=[],
            controller_services=[],
            flow_file_concurrency="UNBOUNDED",
            flow_file_outbound_policy="STREAM_WHEN_AVAILABLE",
            default_flow_file_expiration="0 sec",
            default_back_pressure_object_threshold=10000,
            default_back_pressure_data_size_threshold="1 GB",
            execution_engine="INHERITED",
            max_concurrent_tasks=1,
            stateless_flow_timeout="1 min",
            scheduled_state="ENABLED",
        )
        if parent is not None:
            parent.children.append(self)
            parent.model.process_groups.append(self.model)

    def group(self, name: str, *, at: tuple[float, float], comments: str) -> Group:
        """A group inside this one."""
        return Group(name, at=at, comments=comments, parent=self)

    def processor(
        self,
        name: str,
        type_name: str,
        *,
        at: tuple[float, float],
        comments: str,
        properties: Mapping[str, str | Part],
        ends: Sequence[str] = (),
        every: str = "0 sec",
        cron: bool = False,
        tasks: int = 1,
        penalty: str = "30 sec",
        retry: Retry | None = None,
        sensitive: Sequence[str] = (),
        primary_only: bool = False,
        bulletins: str = "WARN",
    ) -> Part:
        """A processor.

        Args:
            name: On the canvas; what it does.
            type_name: Of the processor, without its package.
            at: Position on the canvas, pixels.
            comments: Why it is there, for the operator.
            properties: By NiFi's names; a service where one is asked for.
            ends: Relationships whose files are done with.
            every: How often it runs, or a cron expression.
            cron: Whether `every` is one.
            tasks: How many may run at once.
            penalty: How long a file that failed waits.
            retry: How it tries again by itself.
            sensitive: Dynamic properties that hold a secret.
            primary_only: Runs on one node of a cluster alone.
            bulletins: From which level on it tells the operator.
        """
        model = api.VersionedProcessor(
            identifier=_id("processor", f"{self.path}/{name}"),
            group_identifier=self.id,
            name=name,
            comments=comments,
            position=_position(at),
            component_type="PROCESSOR",
            style={},
            **_typed(type_name, properties, sensitive),
            scheduling_strategy="CRON_DRIVEN" if cron else "TIMER_DRIVEN",
            scheduling_period=every,
            concurrently_schedulable_task_count=tasks,
            execution_node="PRIMARY" if primary_only else "ALL",
            run_duration_millis=0,
            penalty_duration=penalty,
            yield_duration="1 sec",
            bulletin_level=bulletins,
            auto_terminated_relationships=sorted(ends),
            retried_relationships=sorted(retry.relationships) if retry else [],
            retry_count=retry.count if retry else 10,
            max_backoff_period=retry.max_wait if retry else "10 mins",
            backoff_mechanism="PENALIZE_FLOWFILE",
            scheduled_state="ENABLED",
        )
        self.model.processors.append(model)
        return self._part("PROCESSOR", model)

    def service(self, name: str, type_name: str, *, comments: str, properties: Mapping[str, str | Part]) -> Part:
        """A controller service, for this group and those inside it."""
        model = api.VersionedControllerService(
            identifier=_id("service", f"{self.path}/{name}"),
            group_identifier=self.id,
            name=name,
            comments=comments,
            component_type="CONTROLLER_SERVICE",
            **_typed(type_name, properties),
            bulletin_level="WARN",
            scheduled_state="DISABLED",
        )
        self.model.controller_services.append(model)
        return self._part("CONTROLLER_SERVICE", model)

    def input_port(self, name: str, *, at: tuple[float, float], comments: str = "") -> Part:
        """Where files come in from outside the group."""
        return self._port("INPUT_PORT", name, at, comments)

    def output_port(self, name: str, *, at: tuple[float, float], comments: str = "") -> Part:
        """Where files leave the group."""
        return self._port("OUTPUT_PORT", name, at, comments)

    def label(self, text: str, *, at: tuple[float, float], size: tuple[float, float], colour: str) -> None:
        """A note on the canvas."""
        self.model.labels.append(
            api.VersionedLabel(
                identifier=_id("label", f"{self.path}/{text.partition(chr(10))[0]}"),
                group_identifier=self.id,
                label=text,
                position=_position(at),
                width=size[0],
                height=size[1],
                style={"background-color": colour, "font-size": "14px"},
                z_index=0,
                component_type="LABEL",
            )
        )

    def connect(
        self,
        source: Part,
        destination: Part,
        *relationships: str,
        room: Room | None = None,
        prioritizers: Sequence[str] = (),
        name: str = "",
        spread: Spread = "DO_NOT_LOAD_BALANCE",
    ) -> None:
        """A queue between two parts.

        Args:
            source: In this group, or an output port of a group in it.
            destination: In this group, or an input port of a group in it.
            relationships: Of a processor; none of a port.
            room: How much may wait.
            prioritizers: Who goes first.
            name: On the canvas, where the relationships do not say enough.
            spread: Over the nodes of a cluster; one node alone takes no notice.
        """
        room = room or Room()
        path = f"{self.path}/{source.group.path}/{source.name}>{destination.group.path}/{destination.name}"
        self.model.connections.append(
            api.VersionedConnection(
                identifier=_id("connection", path),
                group_identifier=self.id,
                name=name,
                source=_end(source),
                destination=_end(destination),
                selected_relationships=sorted(relationships) if relationships else [""],
                back_pressure_object_threshold=room.objects,
                back_pressure_data_size_threshold=room.size,
                flow_file_expiration="0 sec",
                prioritizers=list(prioritizers),
                bends=_loop(source) if source == destination else [],
                label_index=0 if source == destination else 1,
                z_index=0,
                load_balance_strategy=spread,
                load_balance_compression="DO_NOT_COMPRESS",
                component_type="CONNECTION",
            )
        )

    def _port(self, kind: Kind, name: str, at: tuple[float, float], comments: str) -> Part:
        model = api.VersionedPort(
            identifier=_id(kind, f"{self.path}/{name}"),
            group_identifier=self.id,
            name=name,
            comments=comments,
            position=_position(at),
            type=kind,
            component_type=kind,
            concurrently_schedulable_task_count=1,
            scheduled_state="ENABLED",
            allow_remote_access=False,
            port_function="STANDARD",
        )
        (self.model.input_ports if kind == "INPUT_PORT" else self.model.output_ports).append(model)
        return self._part(kind, model)

    def _part(self, kind: Kind, model: Any) -> Part:
        part = Part(kind, self, model)
        self.parts.append(part)
        return part


def definition(group: Group, parameters: Sequence[Parameter], context: str) -> dict[str, Any]:
    """The flow definition: what NiFi downloads, uploads and imports.

    Args:
        group: The outermost.
        parameters: Of the flow; values only where they suit everybody.
        context: Name of the parameter context.
    """
    _name_context(group, context)
    snapshot = api.RegisteredFlowSnapshot(
        flow_contents=group.model,
        external_controller_services={},
        parameter_contexts={
            context: api.VersionedParameterContext(
                identifier=_id("context", context),
                name=context,
                component_type="PARAMETER_CONTEXT",
                inherited_parameter_contexts=[],
                parameters=[
                    api.VersionedParameter(
                        name=parameter.name,
                        description=parameter.description,
                        sensitive=parameter.sensitive,
                        provided=False,
                        referenced_assets=[],
                        value=None if parameter.sensitive else parameter.value,
                    )
                    for parameter in parameters
                ],
            )
        },
        parameter_providers={},
        flow_encoding_version="1.0",
        latest=False,
    )
    as_json: dict[str, Any] = api.ApiClient().sanitize_for_serialization(snapshot)
    return as_json


def _name_context(group: Group, context: str) -> None:
    group.model.parameter_context_name = context
    for child in group.children:
        _name_context(child, context)


def _typed(type_name: str, properties: Mapping[str, str | Part], sensitive: Sequence[str] = ()) -> dict[str, Any]:
    package, artifact = _TYPES.get(type_name, (_STANDARD_PACKAGE, _STANDARD))
    properties = {**_SAID.get(type_name, {}), **properties}
    return {
        "type": f"{package}.{type_name}",
        "bundle": api.Bundle(group="org.apache.nifi", artifact=artifact, version=NIFI_VERSION),
        "properties": {name: value.id if isinstance(value, Part) else value for name, value in properties.items()},
        "property_descriptors": {
            name: api.VersionedPropertyDescriptor(
                name=name,
                display_name=name,
                identifies_controller_service=isinstance(value, Part),
                sensitive=name in sensitive,
                dynamic=True if name in sensitive else None,
            )
            for name, value in properties.items()
        },
    }


def _end(part: Part) -> api.ConnectableComponent:
    return api.ConnectableComponent(id=part.id, group_id=part.group.id, name=part.name, type=part.kind)


def _loop(part: Part) -> list[api.Position]:
    x, y = part.model.position.x, part.model.position.y
    return [_position((x + 400, y + 30)), _position((x + 400, y + 90))]


def _position(at: tuple[float, float]) -> api.Position:
    return api.Position(x=float(at[0]), y=float(at[1]))


def _id(kind: str, path: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{kind}:{path}"))
