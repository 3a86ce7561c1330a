"""A checkout of karpathy/nanoGPT, run in a copy, on this package's own corpus."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from haiku_mqa.bench.processes import output
from haiku_mqa.training import Corpus, read_corpus, split
from haiku_mqa.training.run.config import RunConfig

_CONFIG = "config/train_shakespeare_char.py"
_DATA = "data/shakespeare_char"
_EVALUATION_INTERVAL = 250  # what its config says
_EVALUATION_BATCHES = 20
_SEED = "torch.manual_seed(1337 + seed_offset)"
_REPORT = re.compile(r"^step (\d+): train loss (\S+), val loss (\S+)$", re.MULTILINE)
# The checkpoint's loss over the whole split: windows that follow one another.
_EVALUATE = """\
import json, numpy, sys, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
size = saved["model_args"]["block_size"]
tokens = torch.from_numpy(
    numpy.fromfile(sys.argv[2], dtype=numpy.uint16).astype(numpy.int64))
count = len(tokens) - 1
whole = count // size * size
rows = [(tokens[:whole].view(-1, size)[i : i + 64],
         tokens[1 : whole + 1].view(-1, size)[i : i + 64])
        for i in range(0, whole // size, 64)]
if whole < count:
    rows.append((tokens[None, whole:-1], tokens[None, whole + 1 :]))
with torch.no_grad():
    total = sum(model(x, y)[1].item() * y.numel() for x, y in rows)
print(json.dumps({"loss": total / count, "step": saved["iter_num"]}))
"""


class NanoGPT:
    """A copy of a checkout, with the data and the settings of a run config.

    Attributes:
      words: Its command, without the path of Python.
      torch_version: Of what it runs on.
      evaluations: How often it evaluates.
      evaluated_tokens: How many tokens it reads for that, in a whole run.
      remarks: What else there is to say of the runs.
    """

    def __init__(self, checkout: Path, copy: Path, python: str, config: RunConfig):
        """Copies it and prepares its data.

        Args:
          checkout: The folder that has ``train.py``.
          copy: Where the copy goes; not there yet.
          python: A Python that has torch.
          config: What it is to do.

        Raises:
          ValueError: The folder is no checkout, the Python has no torch, or the last
            step would not be evaluated.
        """
        self._steps = config.optimizer.total_steps
        interval = min(_EVALUATION_INTERVAL, self._steps)
        if self._steps % interval:
            raise ValueError(
                f"--steps must be a multiple of {interval}, at which nanoGPT "
                f"evaluates, got {self._steps}"
            )
        for name in ("train.py", "model.py", _CONFIG):
            if not (checkout / name).is_file():
                raise ValueError(
                    f"--nanogpt must be a checkout of nanoGPT, got {str(checkout)!r}, "
                    f"which has no {name}"
                )
        self.torch_version = _version(python)
        self.words = ["python", "train.py", _CONFIG, *_options(config)]
        self._python, self._copy = python, copy
        hidden = shutil.ignore_patterns(".git", "out*", "*.bin", "*.pkl", "assets")
        shutil.copytree(checkout, copy, ignore=hidden)
        _write_data(read_corpus(config.data.source), config, copy / _DATA)
        self._program = (copy / "train.py").read_text()
        self.remarks = (
            ["nanoGPT's seed is written in its train.py: 1337, 1338 ... in the copy"]
            if _SEED in self._program
            else ["nanoGPT's seed was not found in its train.py: its runs share one"]
        )
        self.evaluations = self._steps // interval + 1
        self.evaluated_tokens = (
            self.evaluations
            * 2
            * _EVALUATION_BATCHES
            * config.data.batch_size
            * config.data.seq_len
        )

    def run(self, seed: int) -> dict[str, Any]:
        """Trains once.

        Args:
          seed: Added to nanoGPT's own.

        Returns:
          Seconds, its last estimate of the validation loss, and the loss of its
          checkpoint over the whole split.

        Raises:
          ValueError: It failed, or left no checkpoint.
        """
        seeded = self._program.replace(_SEED, f"torch.manual_seed({1337 + seed})")
        (self._copy / "train.py").write_text(seeded)
        out = self._copy / f"out-{seed}"
        words = [self._python, *self.words[1:], f"--out_dir={out.name}"]
        start = time.perf_counter()
        printed = output(words, "nanoGPT's train.py", folder=self._copy)
        seconds = time.perf_counter() - start
        reports = _REPORT.findall(printed)
        if not reports or not (out / "ckpt.pt").exists():
            raise ValueError("nanoGPT's train.py left no validation loss or checkpoint")
        whole = self._whole_split(out / "ckpt.pt")
        return {
            "seed": 1337 + seed,
            "seconds": seconds,
            "random_batches_loss": float(reports[-1][2]),
            "random_batches_losses": [[int(s), float(loss)] for s, _, loss in reports],
            "validation_loss": whole["loss"],
            "checkpoint_step": whole["step"],
        }

    def _whole_split(self, checkpoint: Path) -> dict[str, Any]:
        data = self._copy / _DATA / "val.bin"
        words = [self._python, "-c", _EVALUATE, str(checkpoint), str(data)]
        printed = output(words, "reading nanoGPT's checkpoint", folder=self._copy)
        return json.loads(printed.splitlines()[-1])


def _options(config: RunConfig) -> list[str]:
    """Returns its README's command for a CPU, as the run config has the numbers."""
    model, optimizer = config.model, config.optimizer
    numbers = {
        "eval_iters": _EVALUATION_BATCHES,
        "eval_interval": min(_EVALUATION_INTERVAL, optimizer.total_steps),
        "log_interval": 1,
        "block_size": config.data.seq_len,
        "batch_size": config.data.batch_size,
        "n_layer": model["num_layers"],
        "n_head": model["num_heads"],
        "n_embd": model["d_model"],
        "max_iters": optimizer.total_steps,
        "lr_decay_iters": optimizer.total_steps,
        "warmup_iters": optimizer.warmup_steps,
        "dropout": 0.0,
    }
    options = [f"--{name}={number}" for name, number in numbers.items()]
    return ["--device=cpu", "--compile=False", *options]


def _write_data(corpus: Corpus, config: RunConfig, folder: Path) -> None:
    """Writes what nanoGPT's prepare.py would, of another corpus."""
    letters = sorted(set(corpus.text))
    ids = {letter: index for index, letter in enumerate(letters)}
    folder.mkdir(parents=True, exist_ok=True)
    parts = split(corpus, config.data.validation)
    for name, part in zip(("train", "val"), parts, strict=True):
        tokens = np.array([ids[letter] for letter in part.text], np.uint16)
        tokens.tofile(folder / f"{name}.bin")
    meta = {
        "vocab_size": len(letters),
        "itos": dict(enumerate(letters)),
        "stoi": ids,
    }
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def _version(python: str) -> str:
    words = [python, "-c", "import torch; print(torch.__version__)"]
    try:
        return output(words, "importing torch").strip()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"nanoGPT needs a Python that has torch, got {python!r} ({error}); "
            "--nanogpt-python names another"
        ) from None
