"""The peers of generation: transformers and llama.cpp, as their users run them.

This file is run as a script, by a Python that has them and need not have this
package, so it imports nothing of it. It answers one line for each line it reads.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Sequence[int]]
Run = Callable[[Rows, int], dict[str, Any]]


def named_llama(folder: Path, dtype: str) -> tuple[str, Any]:
    """Returns what transformers is called, and its Llama with given weights.

    Args:
      folder: Has ``settings.json``, with ``config`` in transformers' words and
        ``threads``, and ``arrays.npz``, by transformers' names.
      dtype: What its weights are held in.
    """
    torch, transformers, name = libraries()
    numpy = importlib.import_module("numpy")
    settings = json.loads((folder / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    with numpy.load(folder / "arrays.npz") as arrays:
        weights = {key: torch.from_numpy(array) for key, array in arrays.items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**settings["config"])
    )
    llama.load_state_dict(weights)
    return name, llama.to(getattr(torch, dtype)).eval()


def libraries() -> tuple[Any, Any, str]:
    """Returns torch, transformers, and what they are called, with their versions."""
    torch, transformers = map(importlib.import_module, ("torch", "transformers"))
    transformers.logging.set_verbosity_error()
    version = torch.__version__.partition("+")[0]
    return (
        torch,
        transformers,
        f"transformers {transformers.__version__}, torch {version}",
    )


def greedy(torch: Any, llama: Any, prompts: Rows, new_tokens: int) -> dict[str, Any]:
    """Continues prompts greedily, by exactly so many tokens each.

    The loop is written out: ``generate`` does more for each token, and would be
    slower.

    Args:
      torch: The library.
      llama: Its model.
      prompts: Token ids, as many in each row.
      new_tokens: How many tokens are to be chosen in each row.

    Returns:
      Seconds of prefill and of decode, and the tokens of the first row.
    """
    with torch.inference_mode():
        rows = [list(prompt) for prompt in prompts]
        ids = torch.tensor(rows, device=llama.device)
        start = time.perf_counter()
        out = llama(input_ids=ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1)
        token[0].item()  # waits for it
        tokens = [token[0]]
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            out = llama(
                input_ids=token[:, None],
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            token = out.logits[:, -1].argmax(-1)
            # Left where it is: a GPU that is asked for each would stand still.
            tokens.append(token[0])
        chosen = torch.stack(tokens).tolist()  # waits for all
        end = time.perf_counter()
    return {
        "prefill_seconds": first - start,
        "decode_seconds": end - first,
        "tokens": chosen,
    }


def transformers_peer(folder: Path, dtype: str) -> tuple[str, Run]:
    """Returns what transformers is called, and what continues prompts with it.

    Args:
      folder: As ``named_llama`` takes it.
      dtype: What its weights are held in.
    """
    torch = importlib.import_module("torch")
    name, llama = named_llama(folder, dtype)
    return name, lambda prompts, count: greedy(torch, llama, prompts, count)


def drawn_peer(config: str, dtype: str, device: str) -> tuple[str, Run]:
    """Returns what transformers is called, and a Llama with weights of its own.

    Args:
      config: In transformers' words, as JSON.
      dtype: What its weights are drawn in, and held in.
      device: Where, in torch's words.
    """
    torch, transformers, name = libraries()
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU")
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        llama = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**json.loads(config))
        )
    llama = llama.eval()
    return name, lambda prompts, count: greedy(torch, llama, prompts, count)


def llama_cpp_peer(file: str, context: str, threads: str) -> tuple[str, Run]:
    """Returns what llama.cpp is called, and what continues one prompt with it.

    Args:
      file: A GGUF file.
      context: Room of its cache, in tokens.
      threads: How many it runs.
    """
    library = importlib.import_module("llama_cpp")
    numpy = importlib.import_module("numpy")
    llama = library.Llama(
        file,
        n_ctx=int(context),
        n_threads=int(threads),
        n_threads_batch=int(threads),
        verbose=False,
    )
    vocabulary = llama.n_vocab()

    def choose() -> int:
        logits = library.llama_get_logits_ith(llama.ctx, -1)
        return int(numpy.ctypeslib.as_array(logits, (vocabulary,)).argmax())

    def run(prompts: Rows, new_tokens: int) -> dict[str, Any]:
        [prompt] = prompts
        llama.reset()
        start = time.perf_counter()
        llama.eval(list(prompt))
        tokens = [choose()]
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            llama.eval(tokens[-1:])
            tokens.append(choose())
        end = time.perf_counter()
        return {
            "prefill_seconds": first - start,
            "decode_seconds": end - first,
            "tokens": tokens,
        }

    return f"llama.cpp (llama-cpp-python {library.__version__})", run


def serve(name: str, run: Run) -> None:
    """Continues the prompts of each line of stdin, and tells how long it took.

    Args:
      name: What the program is called.
      run: What continues prompts.
    """
    print(json.dumps({"name": name}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(run(asked["prompts"], asked["new_tokens"])), flush=True)


def save(folder: Path, out: Path) -> None:
    """Writes transformers' own folder of a model, from which a process can start.

    Args:
      folder: As ``named_llama`` takes it.
      out: Is made.
    """
    name, llama = named_llama(folder, "float32")
    llama.save_pretrained(out)
    print(json.dumps({"name": name}), flush=True)


def start(out: Path, threads: str, ids: Sequence[str]) -> None:
    """Loads the model of a folder, prints one token that follows a prompt, and waits.

    Args:
      out: As ``save`` made it.
      threads: How many torch runs.
      ids: The prompt.
    """
    torch, transformers, _ = libraries()
    torch.set_num_threads(int(threads))
    llama = transformers.LlamaForCausalLM.from_pretrained(out).eval()
    print(greedy(torch, llama, [list(map(int, ids))], 1)["tokens"], flush=True)
    sys.stdin.read()  # until whoever looks at this process has seen it


def main(words: Sequence[str]) -> None:
    """Does what the first word says.

    Args:
      words: ``transformers FOLDER DTYPE``, ``drawn CONFIG DTYPE DEVICE``,
        ``llama.cpp FILE CONTEXT THREADS``, ``save FOLDER OUT`` or
        ``start OUT THREADS ID...``.
    """
    verb, *rest = words
    if verb == "transformers":
        serve(*transformers_peer(Path(rest[0]), rest[1]))
    elif verb == "drawn":
        serve(*drawn_peer(*rest))
    elif verb == "llama.cpp":
        serve(*llama_cpp_peer(*rest))
    elif verb == "save":
        save(Path(rest[0]), Path(rest[1]))
    else:
        start(Path(rest[0]), rest[1], rest[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
