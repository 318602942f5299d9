"""Mask and classes to what keeps a final away: layout, noise, attention, repulsion."""
