"""`kvstore-bench sim`: many seeds of one scenario, or one seed as a readable account."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Final

import click

from kvstore.bench.document import metadata, print_json
from kvstore.bench.sim.runner import Row, Runner, find_simulator, read_parameters, read_switches
from kvstore.bench.sim.scenario import Catalogue, Scenario
from kvstore.bench.sim.shrink import Failure, Shrinker, describe

_REACHED_WITH_SEEDS: Final = 100
_SHOWN_VIOLATIONS_MAX: Final = 10
_FAULTLESS: Final = "steady"
#: Figures of a row that are no counts: of several seeds their mean is told.
_FIGURES: Final = (
    *("verbs_per_op", "ops_per_s", "p50_us", "p99_us", "p999_us"),
    *("nic_busy", "nic_blocked", "processor_busy"),
)


def _seeds(_context: click.Context, _parameter: click.Parameter, text: str) -> range:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not found:
        raise click.BadParameter("expected FIRST-LAST, or one number")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first or last >= 1 << 63:
        raise click.BadParameter(f"{first} to {last} is no range of seeds")
    return range(first, last + 1)


@click.command(
    epilog="""\b
Examples:
  kvstore-bench sim --list
  kvstore-bench sim steady
  kvstore-bench sim all --seeds 1-50
  kvstore-bench sim crash-storm --seeds 1-1000 --set clients=8
  kvstore-bench sim crash-storm --replay 57 --key 3
"""
)
@click.argument("scenario", required=False)
@click.option("--list", "listing", is_flag=True, help="Show scenarios, profiles and parameters.")
@click.option("--seeds", callback=_seeds, default="1-200", show_default=True, help="Both included.")
@click.option("--profile", help="The network; default: the scenario's own, else `ideal`.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option("--variant", "variants", multiple=True, help="Break a rule of the store on purpose.")
@click.option("--replay", type=click.IntRange(0), metavar="SEED", help="Tell what one seed did.")
@click.option("--key", help="For --replay: a key, or `all`. Default: the key of the violation.")
@click.option("--jobs", type=click.IntRange(1), help="Processes. Default: one a core.")
@click.option(
    "--seed-timeout",
    type=click.FloatRange(0.1),
    default=60.0,
    show_default=True,
    help="Seconds after which a seed hangs.",
)
@click.option(
    "--shrink-seconds",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="How long to seek a small failing world; 0: not at all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--summary", is_flag=True, help="Of --json: a row a scenario, not a row a seed.")
def sim(
    scenario: str | None,
    listing: bool,
    seeds: range,
    profile: str | None,
    assignments: tuple[str, ...],
    variants: tuple[str, ...],
    replay: int | None,
    key: str | None,
    jobs: int | None,
    seed_timeout: float,
    shrink_seconds: float,
    as_json: bool,
    summary: bool,
) -> None:
    """Run the store's real client in simulated clusters, with faults, one world for each seed.

    SCENARIO is a name, the path of a .toml file, or `all`; where only a profile is given, it is
    `steady`, which has no faults. A world checks its history. The first violation is made smaller,
    and printed with the command that replays it. Exit status: 0 if every world was good, 1 if not,
    2 for a wrong question.
    """
    program = find_simulator()
    catalogue = Catalogue(read_parameters(program))
    if listing:
        _list(catalogue, read_switches(program))
        return
    if scenario is None:
        if profile is None:
            raise click.UsageError("name a scenario; `kvstore-bench sim --list` shows them")
        scenario = _FAULTLESS
    if key is not None and (replay is None or not re.fullmatch(r"\d+|all", key)):
        raise click.UsageError("--key is a number or `all`, and goes with --replay")
    if replay is not None and scenario == "all":
        raise click.UsageError("--replay needs one scenario")
    names = catalogue.names("scenarios") if scenario == "all" else [scenario]
    chosen = [
        catalogue.scenario(one, profile=profile, assignments=assignments, variants=variants)
        for one in names
    ]
    reports: list[Report] = []
    with Runner(program, jobs=jobs or _cores(), seed_timeout_s=seed_timeout) as runner:
        if replay is not None:
            _replay(runner, chosen[0], replay, key)
            return
        for one in chosen:
            report = _run(runner, one, seeds)
            if report.violations and shrink_seconds > 0:
                _shrink(runner, catalogue, report, shrink_seconds)
            report.finish(_command(one.name, profile, assignments, variants))
            reports.append(report)
            if not as_json:
                report.print()
    if as_json:
        summaries = [report.summary() for report in reports]
        rows = summaries if summary else [row for report in reports for row in report.rows]
        settings = {one.name: dict(one.settings) for one in chosen}
        print_json(metadata("kvstore-bench sim", settings=settings, summary=summaries), rows)
    sys.exit(0 if all(report.good for report in reports) else 1)


class Report:
    """The rows of one run, and what they say together."""

    def __init__(self, scenario: Scenario, seeds: range) -> None:
        self.scenario: Final = scenario
        self.seeds: Final = seeds
        self.rows: Final[list[Row]] = []
        self.violations: Final[list[Row]] = []
        self.smallest: Failure | None = None
        self.smallest_text = ""
        self.replay_command = ""
        self._sums: Final[Counter[str]] = Counter()

    def add(self, row: Row) -> None:
        """Takes the row of a seed."""
        self.rows.append(row)
        if not row["ok"]:
            self.violations.append(row)
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "seed":
                self._sums[name] += value  # type: ignore[assignment]

    @property
    def missed(self) -> list[str]:
        """What the scenario is for and did not happen."""
        if len(self.seeds) < _REACHED_WITH_SEEDS:
            return []
        return [name for name in self.scenario.reaches if self._sums[name] == 0]

    @property
    def good(self) -> bool:
        """Every world was good, and the scenario did what it is for."""
        return not self.violations and not self.missed

    def finish(self, command: str) -> None:
        """Sorts, and finds the command that replays the first violation."""
        self.rows.sort(key=lambda row: row["seed"])
        self.violations.sort(key=lambda row: row["seed"])
        if self.smallest is not None:
            changed = [
                f" --set {name}={value}"
                for name, value in self.smallest.settings.items()
                if self.scenario.settings.get(name) != value
            ]
            self.replay_command = f"{command}{''.join(changed)} --replay {self.smallest.seed}"
        elif self.violations:
            self.replay_command = f"{command} --replay {self.violations[0]['seed']}"

    def summary(self) -> Row:
        """One row for the whole scenario."""
        first = self.violations[0] if self.violations else None
        return {
            "scenario": self.scenario.name,
            "profile": self.scenario.profile,
            "seeds": f"{self.seeds.start}-{self.seeds.stop - 1}",
            "ok": self.good,
            "violations": len(self.violations),
            "violation_seed": first and first["seed"],
            "violation": first and first["violation"],
            "replay": self.replay_command or None,
            "not_reached": ", ".join(self.missed) or None,
            **self._sums,
            **self._means(),
        }

    def _means(self) -> dict[str, float]:
        """Of what no sum says anything about."""
        known = [row for row in self.rows if _FIGURES[0] in row]
        return {name: fmean(row[name] for row in known) for name in _FIGURES} if known else {}

    def print(self) -> None:
        """For people."""
        sums = self._sums
        for row in self.violations[:_SHOWN_VIOLATIONS_MAX]:
            print(f"VIOLATION seed {row['seed']}: {row['violation']}")
        if len(self.violations) > _SHOWN_VIOLATIONS_MAX:
            print(f"... and {len(self.violations) - _SHOWN_VIOLATIONS_MAX} seeds more")
        if self.smallest is not None:
            print(f"smallest found: {self.smallest_text}, seed {self.smallest.seed}:")
            print(f"  {self.smallest.violation}")
        if self.replay_command:
            print(f"replay it with:\n  {self.replay_command}")
        for name in self.missed:
            print(f"NOT REACHED: `{name}` is 0 in all of {len(self.rows)} seeds")
        faults = (
            *("breaks", "crashes", "leaves", "pauses", "partitions", "power_losses", "attachments"),
            *("fenced", "swept", "unknown"),
        )
        happened = ", ".join(f"{sums[name]:,} {name}" for name in faults if sums[name])
        rate = sums["verbs"] / sums["cpu_s"] / 1e6 if sums["cpu_s"] else 0
        price = self._means().get("verbs_per_op")
        each = "" if price is None else f" ({price:.2f} an operation)"
        print(
            f"{self.scenario.name}: {len(self.rows) - len(self.violations)} of {len(self.rows)} "
            f"seeds good; {sums['operations']:,} operations, {sums['verbs']:,} verbs{each} in "
            f"{sums['virtual_s']:,.0f} s of virtual time ({rate:.2f} million verbs a second of "
            f"a core){'; ' + happened if happened else ''}"
        )


def _command(
    scenario: str, profile: str | None, assignments: tuple[str, ...], variants: tuple[str, ...]
) -> str:
    words = ["kvstore-bench", "sim", scenario]
    words += ["--profile", profile] if profile else []
    words += [word for assignment in assignments for word in ("--set", assignment)]
    words += [word for variant in variants for word in ("--variant", variant)]
    return " ".join(words)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(runner: Runner, scenario: Scenario, seeds: range) -> Report:
    report = Report(scenario, seeds)
    with progress_bar(scenario.name, len(seeds)) as advance:
        for row in runner.rows(scenario.name, scenario.settings, seeds):
            report.add(row)
            advance(row)
    return report


def _shrink(runner: Runner, catalogue: Catalogue, report: Report, seconds: float) -> None:
    scenario = report.scenario
    row = min(report.violations, key=lambda row: row["seed"])
    failure = Failure(scenario.settings, row["seed"], row["violation"])
    _say(f"seed {failure.seed} fails; making it smaller, for {seconds:g} s at most")
    shrinker = Shrinker(runner, scenario.name, catalogue.parameters, seconds=seconds, say=_say)
    report.smallest = shrinker.shrink(failure)
    report.smallest_text = describe(report.smallest.settings, catalogue.parameters)


def _replay(runner: Runner, scenario: Scenario, seed: int, key: str | None) -> None:
    if key is None:
        row = next(runner.rows(scenario.name, scenario.settings, range(seed, seed + 1)))
        named = re.search(r"\bkey (\d+)", row["violation"] or "")
        key = named[1] if named else "all"
    for line in runner.trace(scenario.name, scenario.settings, seed, key):
        print(line)


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[Row], None]]:
    """Shows on a terminal how many rows there are; it yields what takes each of them."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[found]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, found="")
        violations = 0

        def advance(row: Row) -> None:
            nonlocal violations
            violations += not row["ok"]
            found = f"[red]{violations} violations" if violations else ""
            bar.update(task, advance=1, found=found)

        yield advance


def _list(catalogue: Catalogue, switches: list[dict[str, str]]) -> None:
    for kind in ("scenarios", "profiles", "parts"):
        print(f"{kind}:")
        for name in catalogue.names(kind):
            print(f"  {name:<20} {catalogue.description(kind, name)}")
        print()
    for kind, title in (("rare", "rare paths"), ("variant", "broken variants (--variant NAME)")):
        print(f"{title}:")
        for one in switches:
            if one["kind"] == kind:
                print(f"  {one['name']:<26} {one['description']}")
        print()
    print("parameters (--set NAME=VALUE; default, range):")
    for parameter in catalogue.parameters.values():
        allowed = f"{parameter.default} ({parameter.least} to {parameter.most} {parameter.unit}"
        print(f"  {parameter.group:<9} {parameter.name:<26} {parameter.help}; {allowed.rstrip()})")
