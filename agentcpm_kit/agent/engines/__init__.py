"""Engines: what turns token ids into the next turn. `transformers`, `vllm` and `openai` behind one small interface."""

from .base import Engine, EngineFault, Sample, Turn, generate_turns
from .loading import load_model, open_engine
from .transformers import TransformersEngine

__all__ = ["Engine", "EngineFault", "Sample", "TransformersEngine", "Turn", "generate_turns", "load_model", "open_engine"]
