"""`python -m pccl`: the same as the `pccl` command."""

from pccl.cli import main

main()
