"""Latency tables of whole networks, measured in context or estimated."""
