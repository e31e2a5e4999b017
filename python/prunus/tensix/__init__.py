"""Simulated Tensix chips."""
