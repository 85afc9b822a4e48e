"""Importances: what a weight, a block, a head or a neuron is worth; one method, one file."""

from lit_compress.strategies.importance.activations import Activations
from lit_compress.strategies.importance.fisher import Fisher
from lit_compress.strategies.importance.function import Function
from lit_compress.strategies.importance.importance import Importance, Sample
from lit_compress.strategies.importance.magnitude import Magnitude
from lit_compress.strategies.importance.movement import Movement
from lit_compress.strategies.importance.taylor import Taylor

__all__ = ["Activations", "Fisher", "Function", "Importance", "Magnitude", "Movement", "Sample", "Taylor"]
