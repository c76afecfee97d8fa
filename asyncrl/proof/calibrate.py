"""Measure how far honest rollouts are from their recomputation, and write thresholds.

    python -m asyncrl.proof.calibrate thresholds.json weights.safetensors --dtypes fp32 bf16

Rollouts are generated token by token in some batch shapes and thread counts and recomputed by a
prefill in others. Their prompts and seeds belong to a run of their own, so that no rollout that is
judged later was among them. Do it for each model size, on each kind of machine that takes part, and
keep the largest of the bounds. Of several files of weights, the bounds hold for all.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from asyncrl.environment import ReasoningGym
from asyncrl.model import load_policy
from asyncrl.proof.proof import ProofFormat
from asyncrl.proof.thresholds import Thresholds, calibrated, save_thresholds
from asyncrl.tokenizer import EOS, VOCABULARY_COUNT, decode, encode
from asyncrl.validation.checks import Rules
from asyncrl.validation.honest import CALIBRATION_RUN, measure
from asyncrl.validation.policies import COMPUTE
from asyncrl.validation.validator import TextTask
from pccl.bench.machine import describe_machine, machine_line


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("thresholds", type=Path, help="the JSON file to write")
    parser.add_argument("weights", type=Path, nargs="+", help="safetensors files of the policy")
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32"])
    parser.add_argument("--task", default="spell_backward", help="of reasoning-gym")
    parser.add_argument("--files", type=int, default=40, help="of 64 rollouts, of each weights")
    parser.add_argument("--tokens-max", type=int, default=10, help="of a completion")
    parser.add_argument("--temperature", type=float, default=1.0)
    given = parser.parse_args()
    try:
        made = [calibrate(dtype, given) for dtype in given.dtypes]
    except (OSError, ValueError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    origin = {
        "made_by": shlex.join(["python", "-m", "asyncrl.proof.calibrate", *sys.argv[1:]]),
        "machine": machine_line(describe_machine()),
    }
    save_thresholds(given.thresholds, made, origin)
    return 0


def calibrate(dtype: str, given: argparse.Namespace) -> Thresholds:
    """Raises OSError, ValueError: the task or a file of weights is none."""
    rules = Rules(
        run_id=CALIBRATION_RUN,
        eos_token=EOS,
        vocabulary_count=VOCABULARY_COUNT,
        token_count_max=given.tokens_max,
        temperature=given.temperature,
        proof_format=ProofFormat(dtype=dtype),
        thresholds=Thresholds(dtype=dtype),  # judges nothing here
    )
    task = TextTask(ReasoningGym(given.task, "validation"), encode, decode)
    found = [
        measure(load_policy(weights, COMPUTE[dtype]), task, rules, given.files)
        for weights in given.weights
    ]
    files = [file for honest in found for file in honest.proofs]
    gaps = [gap for honest in found for gap in honest.gaps]
    proofs = [error for file in files for error in file]
    differing = sum(1 for error in proofs if error.exponent_mismatches)
    made = calibrated(dtype, files, gaps)
    print(
        f"{len(gaps)} rollouts, {len(proofs)} proofs: {differing} with other exponents, at "
        f"most {max(error.exponent_mismatches for error in proofs)}; mantissas differ by at most "
        f"{max(error.mantissa_mean for error in proofs):.3g}; largest gap {max(gaps):.3g}: {made}",
        flush=True,
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
