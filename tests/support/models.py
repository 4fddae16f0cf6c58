"""Architectures of models that are made in a moment."""

ARCHITECTURE = {"hidden_size": 16, "intermediate_size": 32, "layers": 3, "heads": 2, "rope_theta": 10000.0}
