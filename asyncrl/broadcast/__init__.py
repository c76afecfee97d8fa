"""Weights from one origin over relays to many: signed by the trainer, verified chunk by chunk.

No relay is trusted, and any subset of them that is alive is enough. No torch.
"""
