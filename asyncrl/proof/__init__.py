"""Proofs of computation for rollouts, and the thresholds by which they are judged."""

from asyncrl.proof.proof import (
    ProofErrors,
    ProofFormat,
    ProofMalformed,
    build_proofs,
    verify_proofs,
)

__all__ = ["ProofErrors", "ProofFormat", "ProofMalformed", "build_proofs", "verify_proofs"]
