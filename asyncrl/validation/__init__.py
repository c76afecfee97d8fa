"""Validators: whether a file of rollouts came from the policy, prompts and noise of the run."""
