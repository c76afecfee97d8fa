"""Asynchronous reinforcement learning, fed by rollout workers that nobody has to trust."""
