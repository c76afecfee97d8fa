"""Files of the coordinator's live page; page.css is that of pccl's coordinator."""
