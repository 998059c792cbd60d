"""Pictures of bench rows. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from kvstore.bench.document import Row


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise click.ClickException("--plot needs the Python package matplotlib") from error
    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    return figure, axes


def plot_ratios(rows: Sequence[Row], path: Path) -> None:
    """One bar a ratio, drawn as a share of its target; the line at 1 is the target."""
    ratios = [row for row in rows if row.get("kind") == "ratio" and row.get("ratio")]
    figure, axes = _figure(9, 1 + 0.4 * max(1, len(ratios)))
    labels, shares, colours = [], [], []
    for row in ratios:
        share = row["ratio"] / row["target"]
        if row["comparison"] == "at_most":
            share = 1 / share
        variant = f" ({row['variant']})" if row["variant"] else ""
        name = f"{row['fabric']} {row['operation']}{variant} / {row['against']}"
        labels.append(f"{name}: {row['ratio']:.2f}")
        shares.append(share)
        colours.append("tab:green" if row["pass"] else "tab:red")
    axes.barh(range(len(labels)), shares, color=colours)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("share of the target (1 and above: met)")
    figure.savefig(path, dpi=120)


def plot_latency(rows: Sequence[Row], path: Path) -> None:
    """Latency percentiles of each row."""
    figure, axes = _figure(7, 4)
    names = ("p50_us", "p99_us", "p999_us")
    for row in rows:
        label = f"{row['fabric']} {row['operation']} {row['value_bytes']} B x{row['batch']}"
        axes.plot(names, [row[name] for name in names], marker="o", label=label)
    axes.set_yscale("log")
    axes.set_ylabel("microseconds a call")
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_scale(rows: Sequence[Row], path: Path) -> None:
    """Throughput and median latency over the compute nodes, a line for each number of nodes."""
    figure, _ = _figure(11, 7)
    figure.clear()
    panels = figure.subplots(2, 2, sharex=True)
    names = (("ops_per_s", "calls a second"), ("p50_us", "median latency, us"))
    for column, operation in enumerate(("get", "put")):
        for panel, (name, label) in zip(panels[:, column], names, strict=True):
            for nodes in sorted({row["memory_nodes"] for row in rows}):
                line = [
                    row
                    for row in rows
                    if row["operation"] == operation and row["memory_nodes"] == nodes
                ]
                compute = [row["compute_nodes"] for row in line]
                panel.plot(compute, [row[name] for row in line], marker=".", label=str(nodes))
                full = [row for row in line if row["full"]]
                panel.plot(
                    [row["compute_nodes"] for row in full],
                    [row[name] for row in full],
                    "kx",
                )
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_ylabel(label)
            panel.set_title(f"{operation} (x: NIC or processors full)")
    panels[1][0].set_xlabel("compute nodes")
    panels[1][1].set_xlabel("compute nodes")
    panels[0][0].legend(title="memory nodes")
    figure.savefig(path, dpi=110)


def _wrapped(name: str) -> str:
    return name.replace(", ", ",\n")


def plot_locks(rows: Sequence[Row], title: str, axis: str, path: Path) -> None:
    """Throughput and tail latency of each lock, over what varies or by the names of the points."""
    figure, _ = _figure(11, 4.5 if axis else 7)
    figure.clear()
    panels = figure.subplots(1, 2)
    points = list(dict.fromkeys(row["point"] for row in rows))
    fields = {"read_percent": "read_ratio", "locality_percent": "locality"}
    for name in dict.fromkeys(row["lock"] for row in rows):
        line = [row for row in rows if row["lock"] == name]
        places = [
            row[fields.get(axis, axis)] if axis else points.index(row["point"]) for row in line
        ]
        rates = [row["ops_per_s"] / 1e6 for row in line]
        errors = [row["ops_per_s_ci95"] / 1e6 for row in line]
        panels[0].errorbar(places, rates, yerr=errors, marker=".", capsize=2, label=name)
        panels[1].plot(places, [row["p99_us"] for row in line], marker=".", label=name)
    panels[0].set_ylabel("million operations a second")
    panels[1].set_ylabel("99th percentile, us")
    panels[1].set_yscale("log")
    for panel in panels:
        if axis in ("compute_nodes", "clients", "locks", "memory_nodes"):
            panel.set_xscale("log", base=10 if axis == "locks" else 2)
        if not axis:
            panel.set_xticks(range(len(points)), map(_wrapped, points), rotation=90, fontsize=7)
        panel.set_xlabel(title)
    panels[0].set_ylim(bottom=0)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def plot_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    labels: tuple[str, str],
    path: Path,
    *,
    log_base: int = 0,
) -> None:
    """One line for each name, of its places and their values.

    `labels` are those of both axes; with a `log_base` the places have a logarithmic one.
    """
    figure, axes = _figure(7, 4)
    for name, (places, values) in lines.items():
        axes.plot(places, values, marker=".", label=name)
    if log_base > 0:
        axes.set_xscale("log", base=log_base)
    axes.set_title(title)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
