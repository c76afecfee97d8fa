"""Measure how far honest rollouts are from their recomputation, and write thresholds.

    python -m asyncrl.proof.calibrate weights.safetensors thresholds.json --dtype fp32

Rollouts are generated token by token in some batch shapes and thread counts and recomputed by a
prefill in others. Their prompts and seeds belong to a run of their own, so that no rollout that is
judged later was among them. Do it once for each model size and numeric type, on each kind of
machine that takes part, and keep the largest of the bounds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from asyncrl.environment import ReasoningGym
from asyncrl.proof.proof import ProofFormat
from asyncrl.proof.thresholds import calibrated
from asyncrl.tokenizer import EOS, VOCABULARY_COUNT, decode, encode
from asyncrl.validation.checks import Rules
from asyncrl.validation.honest import CALIBRATION_RUN, measure
from asyncrl.validation.policies import KeptPolicies
from asyncrl.validation.validator import TextTask


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="a safetensors file of the policy")
    parser.add_argument("thresholds", type=Path, help="the JSON file to write")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--task", default="spell_backward", help="of reasoning-gym")
    parser.add_argument("--files", type=int, default=40, help="of 64 rollouts")
    parser.add_argument("--tokens-max", type=int, default=10, help="of a completion")
    parser.add_argument("--temperature", type=float, default=1.0)
    given = parser.parse_args()
    policies = KeptPolicies(dtype=given.dtype)
    try:
        policies.add(0, given.weights)
        model = policies.decoder(0)
        rules = Rules(
            run_id=CALIBRATION_RUN,
            eos_token=EOS,
            vocabulary_count=VOCABULARY_COUNT,
            token_count_max=given.tokens_max,
            temperature=given.temperature,
            proof_format=ProofFormat(dtype=given.dtype),
        )
        task = TextTask(ReasoningGym(given.task, "validation"), encode, decode)
    except (OSError, ValueError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    honest = measure(model, task, rules, given.files)
    thresholds = calibrated(given.dtype, honest.proofs, honest.gaps)
    thresholds.save(given.thresholds)
    proofs = [error for file in honest.proofs for error in file]
    differing = sum(1 for error in proofs if error.exponent_mismatches)
    print(
        f"{len(honest.gaps)} rollouts, {len(proofs)} proofs: {differing} with other exponents, at "
        f"most {max(error.exponent_mismatches for error in proofs)}; mantissas differ by at most "
        f"{max(error.mantissa_mean for error in proofs):.3g}; largest gap {max(honest.gaps):.3g}"
    )
    print(f"{given.thresholds}: {thresholds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
