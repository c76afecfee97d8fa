"""`python -m asyncrl.demo`: a whole run on this machine, with a cheater and with kills."""
