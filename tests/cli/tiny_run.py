"""A run of ``haiku-mqa train`` that takes no time."""

from __future__ import annotations

from haiku_mqa.training import Corpus

TEXT = "To be, or not to be: that is the question.\n" * 30
HAMLET = Corpus((TEXT,), name="hamlet.txt")
TINY = {
    "model": {"num_layers": 1, "num_heads": 2, "d_model": 8, "d_ff": 16},
    "data": {"seq_len": 8, "batch_size": 4, "eval_batch_size": 64},
    "optimizer": {"warmup_steps": 1, "total_steps": 12, "learning_rate": 1e-2},
    "eval_every": 4,
    "checkpoint_every": 4,
    "sample_every": 6,
    "sample_tokens": 20,
    "log_every": 1,
}
