"""What a baseline network did: its states, kept or streamed."""

from simjax.states.collect import collect_states
from simjax.states.states import States
from simjax.states.streamed import StreamedStates, stream_states

__all__ = ["States", "StreamedStates", "collect_states", "stream_states"]
