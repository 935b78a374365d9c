"""`simjax doctor`."""

from __future__ import annotations

from simjax.app import display
from simjax.app.arguments import Json
from simjax.app.exits import reporting


def doctor(as_json: Json = False) -> None:
    """Say what simjax finds here: versions, devices, the engine auto takes, memory, oracles and their licences."""
    with reporting():
        from simjax.app.doctor import doctor_report  # here: it asks JAX for its devices

        report = doctor_report()
        if as_json:
            display.print_json(report)
        else:
            display.print_doctor(report)
