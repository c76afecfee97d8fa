"""DiLoCo in the Trainer of Hugging Face: a callback and a schedule.

diloco launch --members 4 examples/diloco_transformers.py
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import diloco
import pccl
from diloco.huggingface import DiLoCoCallback
from diloco.schedule import cosine
from diloco.session import Session

STEPS = 40


def main() -> diloco.SyncInfo | None:
    """Learn to count; the last merge."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rows = [[(start + place) % 16 for place in range(12)] for start in range(16)] * 20
    data = [{"input_ids": row, "labels": row} for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    with pccl.join() as comm, tempfile.TemporaryDirectory() as folder:
        session = Session(comm, sync_every=10, warmup_sync_steps=10)
        arguments = TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=8, logging_steps=1,
            use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            optimizers=(optimizer, session.schedule(optimizer, cosine(STEPS))),  # type: ignore[arg-type]
            callbacks=[DiLoCoCallback(session)],
        ).train()
        assert session.run is not None
        return session.run.info


if __name__ == "__main__":
    print(main())
