"""What `init --systemd` has done, for people."""

from __future__ import annotations

from taskforgectl.render.output import echo
from taskforgectl.service.setup import Setup
from taskforgectl.service.units import Change

__all__ = ["tell_setup"]


def tell_setup(setup: Setup) -> None:
    """Say which units were made or left alone, whether they run, and what is left to type."""
    echo("")
    for one in setup.units:
        echo(f"{one.change.value:<10}  {one.path}")
    if any(one.change is Change.THEIRS for one in setup.units):
        echo("            Changes belong into a drop-in: systemctl --user edit taskforged.service. Remove the file and")
        echo("            run this again to have the present one.")
    echo(f"\nThe service: {setup.state}")
    if setup.left:
        echo("\nLeft to type:")
        for command, why in setup.left:
            echo(f"  {command}\n      {why}")
