"""The kinds of states that can be fitted."""

from __future__ import annotations

from simjax.states.mapped import MappedStates
from simjax.states.states import States
from simjax.states.streamed import StreamedStates

AnyStates = States | MappedStates | StreamedStates
