"""Measurements: figures that the README and docs quote, and the commands that print them."""
