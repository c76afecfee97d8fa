"""The text that the examples train on: real English, split into a training and a held-out part.

Preferred is GCIDE, a 40 MB English dictionary, from the Debian package dict-gcide (kept in a cache
folder outside the repository); the fallback is The Devil's Dictionary, which lies in examples/data.
Both are alphabetical, so entries are shuffled (always in the same way) before the split: else the
held-out part would be the letter Z.
"""

import gzip
import hashlib
import os
import random
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# apt-get answers in a second or not at all; an example may not hang on a firewall.
DOWNLOAD_DEADLINE_SECONDS = 30
HELD_OUT_BYTES_MAX = 1_000_000
HELD_OUT_SHARE_MAX = 0.1
SHUFFLE_SEED = 0

DATA_FOLDER = Path(__file__).resolve().parent / "data"
TEXTS = ("auto", "gcide", "devil")


@dataclass(frozen=True)
class Corpus:
    """A text as bytes; `digest` tells whether two ranks or two runs have the same."""

    name: str
    train: Tensor  # [bytes] uint8
    held_out: Tensor  # [bytes] uint8
    digest: str


def cache_folder() -> Path:
    """Where downloaded text is kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "pccl"


def load_corpus(text: str = "auto", *, may_download: bool = True) -> Corpus:
    """Load a text, shuffled by entry and split.

    Args:
        text: "gcide", "devil", or "auto": GCIDE where it is or can be downloaded, else the other.
        may_download: False on all ranks but one per host; they find what that rank left in the
            cache.

    Raises:
        FileNotFoundError: "gcide" is asked for, and neither cached nor reachable.
    """
    if text not in TEXTS:
        raise ValueError(f"load_corpus: text must be one of {TEXTS}, not {text!r}")
    if text != "devil":
        path = _gcide(may_download)
        if path is not None:
            return _split("gcide", path.read_bytes(), rb"\n\n(?=\S)")
        if text == "gcide":
            raise FileNotFoundError("dict-gcide is not in the cache and cannot be downloaded")
    raw = (DATA_FOLDER / "devils_dictionary.txt").read_bytes()
    return _split("devil", raw, rb"\n\n(?=[A-Z][A-Z' -]+,)")


def _split(name: str, raw: bytes, between_entries: bytes) -> Corpus:
    entries = re.split(between_entries, raw)
    random.Random(SHUFFLE_SEED).shuffle(entries)
    shuffled = bytearray(b"\n\n".join(entries))
    held_out_bytes = min(HELD_OUT_BYTES_MAX, int(len(shuffled) * HELD_OUT_SHARE_MAX))
    text = torch.frombuffer(shuffled, dtype=torch.uint8)
    digest = hashlib.sha256(shuffled).hexdigest()
    return Corpus(name, text[:-held_out_bytes], text[-held_out_bytes:], digest)


def _gcide(may_download: bool) -> Path | None:
    path = cache_folder() / "gcide.txt"
    if path.exists():
        return path
    if not may_download or shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside its final place and renamed: a run that is interrupted leaves no half text.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            _run(["apt-get", "-q", "download", "dict-gcide"], folder)
            (package,) = Path(folder).glob("dict-gcide_*.deb")
            _run(["dpkg", "-x", str(package), "."], folder)
            with gzip.open(Path(folder) / "usr/share/dictd/gcide.dict.dz") as packed:
                (Path(folder) / "gcide.txt").write_bytes(packed.read())
        except (OSError, subprocess.SubprocessError, ValueError):
            return (
                None  # No network, no package list, another distribution: the fallback text serves.
            )
        (Path(folder) / "gcide.txt").rename(path)
    return path


def _run(command: list[str], folder: str) -> None:
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        timeout=DOWNLOAD_DEADLINE_SECONDS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def sample_windows(text: Tensor, count: int, length: int, random: torch.Generator) -> Tensor:
    """Return `count` random windows, [count, length + 1] int64: inputs and, one later, targets."""
    start = torch.randint(len(text) - length, (count, 1), generator=random)  # [count, 1]
    return text[start + torch.arange(length + 1)].long()


def even_windows(text: Tensor, count: int, length: int) -> Tensor:
    """Return `count` windows, evenly spread, [count, length + 1] int64: the same in every run."""
    start = torch.linspace(0, len(text) - length - 1, count).long()[:, None]  # [count, 1]
    return text[start + torch.arange(length + 1)].long()
