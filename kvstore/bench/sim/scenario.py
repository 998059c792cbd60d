"""Scenarios: a workload, faults and a network, as small files made of named parts.

A scenario file is TOML::

    description = "one line"
    parts = ["crashes", "late messages"]   # files of the folder parts/, applied in this order
    profile = "connectx6"                  # a file of the folder profiles/; default: ideal
    reaches = ["crashes", "swept"]         # what some of a hundred seeds must have met
    rare = ["early_split"]                 # rare paths of the code, open in every world

    [workload]                             # [faults], [invariants], [network], [node]
    operations = 3000

A part has a description and the same tables. What comes later wins: profile, parts, the scenario's
own tables, `--set`. A profile sets the network only, and says for every figure where it is from.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from kvstore.bench.sim.errors import SimulationError

DEFAULT_PROFILE: Final = "ideal"
_ENTRIES: Final = {
    "description": str,
    "parts": list,
    "profile": str,
    "reaches": list,
    "rare": list,
}

Settings = Mapping[str, int | str]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a world, as the simulator describes it."""

    name: str
    group: str
    unit: str
    least: int
    most: int
    default: int
    help: str


@dataclass(frozen=True)
class Scenario:
    """What a simulation runs: settings of the world by parameter name, and its switches."""

    name: str
    description: str
    profile: str
    settings: Settings
    reaches: tuple[str, ...]


class Catalogue:
    """The scenarios, parts and profiles of the package, checked against the parameters."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters: Final = {parameter.name: parameter for parameter in parameters}
        self._groups: Final = {parameter.group for parameter in self.parameters.values()}

    def names(self, kind: str) -> list[str]:
        """The names of one kind: scenarios, parts or profiles."""
        folder = resources.files(__package__) / kind
        stems = (entry.name.removesuffix(".toml") for entry in folder.iterdir())
        return sorted(stem.replace("_", " " if kind == "parts" else "-") for stem in stems)

    def description(self, kind: str, name: str) -> str:
        """The one line that a file says about itself."""
        return str(self._read(kind, name).get("description", ""))

    def scenario(
        self,
        name: str,
        *,
        profile: str | None = None,
        assignments: Sequence[str] = (),
        variants: Sequence[str] = (),
    ) -> Scenario:
        """A scenario by its name, or by the path of a file.

        Args:
            name: A name of `names("scenarios")`, or a path that ends in `.toml`.
            profile: Used instead of the scenario's own.
            assignments: `name=value` each; they win over everything else.
            variants: Rules of the store that are broken on purpose.

        Raises:
            SimulationError: A name or a value is wrong; the message is one line.
        """
        document = self._read("scenarios", name)
        chosen = profile or document.get("profile") or DEFAULT_PROFILE
        settings = self._settings(f"profile {chosen}", self._read("profiles", chosen), {"network"})
        documents = [document]
        for part in document.get("parts", []):
            documents.append(self._read("parts", part))
            settings |= self._settings(f"part {part}", documents[-1], self._groups)
        settings |= self._settings(f"scenario {name}", document, self._groups)
        for assignment in assignments:
            settings |= self._assigned(assignment)
        rare = sorted({one for file in documents for one in file.get("rare", [])})
        switches = {"rare": ",".join(rare), "variants": ",".join(variants)}
        return Scenario(
            name=name,
            description=document.get("description", ""),
            profile=chosen,
            settings={**settings, **{kind: names for kind, names in switches.items() if names}},
            reaches=tuple(document.get("reaches", ())),
        )

    def _read(self, kind: str, name: str) -> dict[str, Any]:
        where = name
        try:
            if name.endswith(".toml"):
                text = Path(name).read_text(encoding="utf-8")
            else:
                where = f"{kind[:-1]} {name}"
                if name not in self.names(kind):
                    known = ", ".join(self.names(kind))
                    raise SimulationError(f"there is no {where}; the {kind} are: {known}")
                stem = name.replace(" ", "_").replace("-", "_")
                text = (resources.files(__package__) / kind / f"{stem}.toml").read_text("utf-8")
            document = tomllib.loads(text)
        except OSError as error:
            raise SimulationError(f"{name}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SimulationError(f"{where}: {error}") from error
        for key, value in document.items():
            expected = _ENTRIES.get(key, dict)
            if not isinstance(value, expected):
                raise SimulationError(
                    f"{where}: `{key}` is not a {expected.__name__}, or no entry of such a file"
                )
        return document

    def _settings(
        self, where: str, document: Mapping[str, Any], groups: set[str]
    ) -> dict[str, int]:
        settings: dict[str, int] = {}
        for group, table in document.items():
            if group in _ENTRIES or group == "evidence":
                continue
            if group not in groups:
                allowed = ", ".join(f"[{known}]" for known in sorted(groups))
                raise SimulationError(f"{where}: there is no table [{group}] but {allowed}")
            for name, value in table.items():
                parameter = self._parameter(where, name)
                if parameter.group != group:
                    raise SimulationError(f"{where}: {name} belongs to [{parameter.group}]")
                if not isinstance(value, int):
                    raise SimulationError(f"{where}: {name} is not a whole number, true or false")
                settings[name] = _checked(where, parameter, int(value))
        return settings

    def _assigned(self, assignment: str) -> dict[str, int]:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SimulationError(f"--set {assignment}: expected name=value")
        parameter = self._parameter("--set", name)
        try:
            value = {"true": 1, "false": 0}.get(text)
            value = int(text) if value is None else value
        except ValueError as error:
            raise SimulationError(f"--set {assignment}: `{text}` is not a whole number") from error
        return {name: _checked("--set", parameter, value)}

    def _parameter(self, where: str, name: str) -> Parameter:
        if name in self.parameters:
            return self.parameters[name]
        near = difflib.get_close_matches(name, self.parameters, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "; `kvstore-bench sim --list` shows them"
        raise SimulationError(f"{where}: there is no parameter {name}{hint}")


def _checked(where: str, parameter: Parameter, value: int) -> int:
    if parameter.least <= value <= parameter.most:
        return value
    allowed = f"{parameter.least} to {parameter.most} {parameter.unit}".rstrip()
    raise SimulationError(f"{where}: {parameter.name} is {value}; it may be {allowed}")
