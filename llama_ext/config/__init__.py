"""What a model is: one description, whatever file it came from."""

from llama_ext.config.llama_config import EXPERT_SCORINGS, LAYER_KINDS, MODEL_TYPES, LlamaConfig, RopeScaling

__all__ = ["EXPERT_SCORINGS", "LAYER_KINDS", "MODEL_TYPES", "LlamaConfig", "RopeScaling"]
