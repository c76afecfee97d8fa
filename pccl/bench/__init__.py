"""`pccl bench`: how fast are the collectives of a torch.distributed backend.

The table is the one known from nccl-tests.

Two backends can be measured against each other: in the same processes, repetition by repetition in
turn, so that whatever else the machine does hits both. `measure.py` is the place to start reading.
"""
