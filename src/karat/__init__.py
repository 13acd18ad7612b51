"""karat: reinforcement learning from human feedback, end to end, and the audit of it."""

__version__ = "0.1.0"
