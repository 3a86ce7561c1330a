"""The peer of ``bench train``: the same decoder and optimizer, as torch users have it.

This file is run as a script, by a Python that has torch and need not have this
package, so it imports nothing of it. It answers one line for each line it reads.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def llama(torch: Any, settings: dict[str, Any], weights: Any) -> Any:
    """Returns a decoder with rotary positions, RMS norms and a gated feed-forward.

    Args:
      torch: The library.
      settings: Fields of ``DecoderConfig``.
      weights: This package's names to arrays, ``[in, out]``.

    Returns:
      A module, tokens ``[B, T]`` and labels ``[B, T]`` to their mean loss.
    """
    nn, functional = torch.nn, torch.nn.functional
    heads, size = settings["num_heads"], settings["key_size"]
    kv_heads, width = settings["num_kv_heads"], settings["d_model"]
    shape = (settings["seq_len"], size // 2)
    places = torch.arange(shape[0], dtype=torch.float32)
    rates = settings["rope_theta"] ** (-torch.arange(shape[1]) / shape[1])
    angles = torch.outer(places, rates)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)

    def linear(name: str) -> Any:
        matrix = torch.from_numpy(weights[f"{name}/w"].T.copy())
        made = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        made.weight = nn.Parameter(matrix)
        return made

    def norm(name: str) -> Any:
        made = nn.RMSNorm(width, eps=settings["norm_eps"])
        made.weight = nn.Parameter(torch.from_numpy(weights[f"{name}/scale"]))
        return made

    def rotate(x: Any) -> Any:
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-right, left], dim=-1) * sin

    class Block(nn.Module):
        def __init__(self, path: str):
            super().__init__()
            self.query = linear(f"{path}/attention/query")
            self.key = linear(f"{path}/attention/key")
            self.value = linear(f"{path}/attention/value")
            self.output = linear(f"{path}/attention/linear")
            self.gate = linear(f"{path}/feed_forward/gate")
            self.up = linear(f"{path}/feed_forward/up")
            self.down = linear(f"{path}/feed_forward/down")
            self.attention_norm = norm(f"{path}/attention_norm")
            self.feed_forward_norm = norm(f"{path}/feed_forward_norm")

        def forward(self, x: Any) -> Any:
            rows, length, _ = x.shape
            read = self.attention_norm(x)
            query, key, value = (
                part(read).view(rows, length, count, size).transpose(1, 2)
                for part, count in (
                    (self.query, heads),
                    (self.key, kv_heads),
                    (self.value, kv_heads),
                )
            )
            seen = functional.scaled_dot_product_attention(
                rotate(query), rotate(key), value, is_causal=True, enable_gqa=True
            )
            x = x + self.output(seen.transpose(1, 2).reshape(rows, length, -1))
            read = self.feed_forward_norm(x)
            gated = functional.silu(self.gate(read)) * self.up(read)
            return x + self.down(gated)

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = torch.from_numpy(weights["decoder_lm/embed/embeddings"])
            self.embed = nn.Embedding.from_pretrained(table, freeze=False)
            self.blocks = nn.ModuleList(
                Block(f"decoder_lm/decoder/layer_{layer}")
                for layer in range(settings["num_layers"])
            )
            self.final_norm = norm("decoder_lm/decoder/final_norm")

        def forward(self, tokens: Any, labels: Any) -> Any:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.final_norm(x), self.embed.weight)
            return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return Llama()


def steps(torch: Any, settings: dict[str, Any], weights: Any) -> Iterator[float]:
    """Yields the loss of one step after another, without end.

    Args:
      torch: The library.
      settings: Of the model and of AdamW, and whether to compile.
      weights: Of the model, and ``tokens`` and ``labels`` ``[C, B, T]``, which are
        read in turn.
    """
    model = llama(torch, settings, weights)
    everything = list(model.parameters())
    groups = [
        {"params": [p for p in everything if p.dim() > 1]},
        {"params": [p for p in everything if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings["learning_rate"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )
    run = torch.compile(model) if settings["compile"] else model
    while True:
        for tokens, labels in zip(weights["tokens"], weights["labels"], strict=True):
            loss = run(torch.from_numpy(tokens).long(), torch.from_numpy(labels).long())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(everything, settings["clip_norm"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield loss.item()


def main(folder: Path) -> None:
    """Runs as many steps as each line of stdin says, and tells how long they took.

    Args:
      folder: Has ``settings.json`` and ``arrays.npz``.
    """
    torch, numpy = importlib.import_module("torch"), importlib.import_module("numpy")
    settings = json.loads((folder / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    with numpy.load(folder / "arrays.npz") as arrays:
        weights = dict(arrays)
    losses = steps(torch, settings, weights)
    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        found = [next(losses) for _ in range(int(line))]
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "losses": found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
