"""What a baseline network did: its states, kept, mapped or streamed."""

from simjax.states.collect import collect_states
from simjax.states.mapped import MappedStates
from simjax.states.states import States
from simjax.states.streamed import StreamedStates, stream_states

__all__ = ["MappedStates", "States", "StreamedStates", "collect_states", "stream_states"]
