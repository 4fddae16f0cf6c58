"""Architectures of models that are made in a moment."""

from longshort.models.settings import Architecture

ARCHITECTURE = Architecture(hidden_size=16, intermediate_size=32, layers=3, heads=2)
