"""The command `diloco`."""
