"""Runs the short examples of DiLoCo, one after the other, as one member of one run each."""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict

import torch


def main() -> None:
    torch.set_num_threads(1)
    port, *names = sys.argv[1:]
    for name in names:
        os.environ["PCCL_RUN"] = f"pccl://127.0.0.1:{port}/{name}"
        info = importlib.import_module(f"diloco_{name}").main()
        print(json.dumps({"example": name, **asdict(info)}), flush=True)


if __name__ == "__main__":
    main()
