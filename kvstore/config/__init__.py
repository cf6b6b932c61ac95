"""Everything a node can be told, where each value came from, and what is wrong with it."""

from kvstore.config.loading import Examined, examine, load
from kvstore.config.options import OPTIONS, Option
from kvstore.config.reference import reference, shown
from kvstore.config.sections import NodeConfig
from kvstore.config.sources import Origin

__all__ = ["OPTIONS", "Examined", "NodeConfig", "Option", "Origin", "examine", "load", "reference", "shown"]
