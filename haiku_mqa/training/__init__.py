"""From text to a trained model: data, loss, optimizer and step."""

from haiku_mqa._heap import keep_freed_memory
from haiku_mqa.training.corpus import Corpus, read_corpus, split
from haiku_mqa.training.data import (
    Batch,
    RandomWindows,
    encode_corpus,
    encode_documents,
    validation_batches,
)
from haiku_mqa.training.evaluate import Evaluation, evaluate
from haiku_mqa.training.grain_loader import GrainWindows
from haiku_mqa.training.loss import Loss, chunked_cross_entropy, cross_entropy
from haiku_mqa.training.optimizer import (
    clip_by_global_norm,
    decay_mask,
    make_optimizer,
)
from haiku_mqa.training.optimizer_config import OptimizerConfig, learning_rate_at
from haiku_mqa.training.packing import PackedDocuments
from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.run.data_config import DataConfig
from haiku_mqa.training.run.recipes import load_run_config, recipe_names
from haiku_mqa.training.run.train import TrainResult, train
from haiku_mqa.training.state import (
    Metrics,
    TrainingBatch,
    TrainState,
    init_train_state,
)
from haiku_mqa.training.step import make_loss, make_train_step
from haiku_mqa.training.token_files import open_tokens, write_tokens

__all__ = [
    "Batch",
    "Corpus",
    "DataConfig",
    "Evaluation",
    "GrainWindows",
    "Loss",
    "Metrics",
    "OptimizerConfig",
    "PackedDocuments",
    "RandomWindows",
    "RunConfig",
    "TrainResult",
    "TrainState",
    "TrainingBatch",
    "chunked_cross_entropy",
    "clip_by_global_norm",
    "cross_entropy",
    "decay_mask",
    "encode_corpus",
    "encode_documents",
    "evaluate",
    "init_train_state",
    "keep_freed_memory",
    "learning_rate_at",
    "load_run_config",
    "make_loss",
    "make_optimizer",
    "make_train_step",
    "open_tokens",
    "read_corpus",
    "recipe_names",
    "split",
    "train",
    "validation_batches",
    "write_tokens",
]
