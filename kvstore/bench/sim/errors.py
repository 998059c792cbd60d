"""What the commands of the simulator tell their user in one line."""

from __future__ import annotations

import click


class SimulationError(click.ClickException):
    """A scenario, a parameter or the simulator itself is not usable as asked."""

    exit_code = 2
