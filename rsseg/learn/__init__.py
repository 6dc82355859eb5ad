"""Objectives: what is learnt when weights change."""
