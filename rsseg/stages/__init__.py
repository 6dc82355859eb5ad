"""Stages: what a tile's arrays become when no weights change."""
