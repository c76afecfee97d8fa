"""`pccl demo`: trains a small model here while members and the coordinator are killed.

The command alone imports it. What trains is a program of its own, examples/demo_member.py, which a
wheel holds as well; this package starts, listens to and kills processes, and judges what they said.
"""
