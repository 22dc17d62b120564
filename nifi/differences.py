"""What differs between the flow that NiFi runs and the flow that the code builds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_KINDS = {
    "processors": "processor",
    "controllerServices": "service",
    "inputPorts": "port",
    "outputPorts": "port",
    "connections": "queue",
    "labels": "label",
    "funnels": "funnel",
}
_OF_THE_INSTANCE = frozenset(
    {
        # identities and states of one NiFi
        "instanceIdentifier", "groupIdentifier", "scheduledState", "controllerServiceApis", "propertyDescriptors",
        # where things lie on the canvas is the operator's
        "position", "bends", "labelIndex", "zIndex", "style", "width", "height", "source", "destination",
    }
)  # fmt: skip
_UNORDERED = frozenset({"autoTerminatedRelationships", "retriedRelationships", "selectedRelationships"})

Defaults = Mapping[str, Mapping[str, str | None]]
"""By identifier of a processor or service: its properties' values where nobody sets them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that deploying changes.

    Attributes:
        action: What deploying does to it.
        kind: Processor, queue, …
        name: With the groups around it.
        identifier: Of the part.
        fields: What is changed of it.
    """

    action: Literal["add", "change", "remove"]
    kind: str
    name: str
    identifier: str
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f" ({', '.join(self.fields)})" if self.fields else ""
        return f"{self.action} {self.kind} {self.name}{what}"


def differences(running: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Defaults) -> list[Difference]:
    """What deploying would change, in no special order.

    Args:
        running: The definition that NiFi gives of what it runs.
        wanted: The definition that the code builds.
        defaults: Values of properties that `wanted` leaves as they are.
    """
    old = dict(_parts(running["flowContents"]))
    new = dict(_parts(wanted["flowContents"]))
    found = [
        Difference(action="remove", kind=kind, name=name, identifier=identifier)
        for identifier, (kind, name, _) in old.items()
        if identifier not in new
    ]
    for identifier, (kind, name, part) in new.items():
        if identifier not in old:
            found.append(Difference(action="add", kind=kind, name=name, identifier=identifier))
        elif fields := tuple(_changed(old[identifier][2], part, defaults.get(identifier, {}))):
            found.append(Difference(action="change", kind=kind, name=name, identifier=identifier, fields=fields))
    return found


def _parts(group: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, tuple[str, str, Mapping[str, Any]]]]:
    """Every part by its identifier; the outermost group has another one in each NiFi."""
    own = {key: group.get(key) for key in ("name", "comments", "parameterContextName")}
    yield ("outermost" if not path else group["identifier"]), ("group", path + group["name"], own)
    inside = f"{path}{group['name']} / "
    for key, kind in _KINDS.items():
        for part in group.get(key) or ():
            yield part["identifier"], (kind, inside + _name(part, kind), part)
    for child in group.get("processGroups") or ():
        yield from _parts(child, inside)


def _name(part: Mapping[str, Any], kind: str) -> str:
    if kind == "queue":
        return f"{part['source']['name']} > {part['destination']['name']}"
    name: str = part.get("name") or part.get("label", "").partition("\n")[0]
    return name


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, str | None]) -> Iterator[str]:
    for key in sorted(set(old) | set(new)):
        if key == "properties":
            yield from _changed_properties(old.get(key) or {}, new.get(key) or {}, defaults)
        elif key not in _OF_THE_INSTANCE and key in new and _comparable(key, old) != _comparable(key, new):
            yield key


def _comparable(key: str, part: Mapping[str, Any]) -> Any:
    value = part.get(key)
    return set(value or ()) if key in _UNORDERED else value or None


def _changed_properties(
    old: Mapping[str, str | None], new: Mapping[str, str | None], defaults: Mapping[str, str | None]
) -> Iterator[str]:
    for name in sorted(set(old) | set(new)):
        wanted = new.get(name, defaults.get(name))
        if (old.get(name) or None) != (wanted or None):
            yield name
