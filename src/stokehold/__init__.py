"""Stokehold keeps a language model learning on the machine its owner has."""

__version__ = "0.1.0"
