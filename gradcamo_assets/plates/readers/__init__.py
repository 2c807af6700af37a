"""Exports of microscopes: what planes there are, and how one plane is read. Nothing here writes."""
