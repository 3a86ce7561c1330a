"""Folders written as Hugging Face's libraries read them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers

from haiku_mqa import text
from haiku_mqa._arguments import whole_number
from haiku_mqa._files import as_path, write_whole
from haiku_mqa.checks import check_params
from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Params, build
from haiku_mqa.pretrained._tensor_files import INDEX, Outline, shards, write_tensors
from haiku_mqa.pretrained._tokenizer_files import TOKENIZER, write_tokenizer
from haiku_mqa.pretrained.chat_tokenizer import ChatTokenizer
from haiku_mqa.pretrained.families import Family, Tensor, family_named
from haiku_mqa.pretrained.folder import CONFIG

GENERATION = "generation_config.json"


def save_pretrained(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    params: Params,
    *,
    family: str,
    tokenizer: Any = None,
    bos_token: int | None = None,
    end_tokens: Sequence[int] | None = None,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Writes a folder that transformers loads.

    ``config.json``, ``generation_config.json``, ``model.safetensors`` (or several
    such files with an index) and, if there is one, ``tokenizer.json``. The folder
    appears when all of it is written, or not at all.

    Args:
      folder: Which is made; it may be there if it is empty.
      config: Of the decoder.
      params: As ``init`` makes them; written in the dtype they lie in.
      family: The ``model_type`` that others shall know it by.
      tokenizer: One of ``haiku_mqa.text`` or one that came with a model, whose
        ``tokenizer_config.json`` is written too; a ``tokenizers.Tokenizer``; or the
        path of a ``tokenizer.json``.
      bos_token: The id that begins a text; the tokenizer's own if ``None``.
      end_tokens: The ids that end one; the tokenizer's own if ``None``.
      max_shard_size: Bytes above which the weights are cut into several files.

    Raises:
      ValueError: An argument stands in another's place; there is no such family, it
        has no decoder of this config (the fields are named), the parameters are not
        the config's, or ``tokenizer`` is something else.
      FileExistsError: The folder is there, and not empty.
      OSError: It cannot be written.

    Example:
      >>> import jax, tempfile
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> params = build(config).init(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_pretrained(folder, config, params, family="llama")
      ...     sorted(os.listdir(folder))
      ['config.json', 'generation_config.json', 'model.safetensors']
    """
    folder = as_path("folder", folder)
    whole_number("max_shard_size", max_shard_size)
    model = build(config)
    chosen = family_named(family)
    keys = chosen.keys_of(config)
    check_params(params, model.param_shapes)
    _check_unquantized(params)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} must not be there, or be an empty folder")
    # Said even where there is none: a family's own ids would be taken instead.
    if bos_token is None:
        bos_token = getattr(tokenizer, "bos_token", None)
    own: Sequence[int] = getattr(tokenizer, "end_tokens", ())
    ends = own if end_tokens is None else end_tokens
    ids = {
        "bos_token_id": _token(config, "bos_token", bos_token),
        "eos_token_id": [_token(config, "end_tokens", i) for i in ends] or None,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        _write_weights(part, chosen, config, params, max_shard_size)
        _write_tokenizer(part, tokenizer)
        dtype = str(np.dtype(params["decoder_lm/embed"]["embeddings"].dtype))
        keys |= {**ids, "pad_token_id": None, "torch_dtype": dtype}
        _write_json(part / CONFIG, keys)
        _write_json(part / GENERATION, {"_from_model_config": True, **ids})
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _token(config: DecoderConfig, name: str, token: int | None) -> int | None:
    if token is None:
        return None
    return whole_number(name, token, 0, config.vocab_size - 1)


def _check_unquantized(params: Params) -> None:
    for module, leaves in params.items():
        for leaf, array in leaves.items():
            if not isinstance(array, np.ndarray | jax.Array):
                raise ValueError(
                    f"params must be arrays, got {type(array).__name__} at "
                    f"{module}/{leaf}: quantized ones cannot be written"
                )


def _write_weights(
    folder: Path, family: Family, config: DecoderConfig, params: Params, most: int
) -> None:
    tensors = {tensor.name: tensor for tensor, _ in family.tensors_of(config)}
    outlines = {
        tensor.name: Outline(shape, _dtype(tensor, params))
        for tensor, shape in family.tensors_of(config)
    }
    places: dict[str, str] = {}
    for name, outlines_of_file in shards(outlines, most):
        arrays = (
            _foreign(tensors[tensor], outline, config, params)
            for tensor, outline in outlines_of_file.items()
        )
        write_tensors(folder / name, outlines_of_file, arrays)
        places |= dict.fromkeys(outlines_of_file, name)
    if len(set(places.values())) > 1:
        size = sum(outline.size for outline in outlines.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        _write_json(folder / INDEX, index)


def _ours(tensor: Tensor, params: Params) -> list[Any]:
    split = (f"decoder_lm/{path}".rpartition("/") for path in tensor.ours)
    return [params[module][leaf] for module, _, leaf in split]


def _dtype(tensor: Tensor, params: Params) -> np.dtype:
    return np.result_type(*(array.dtype for array in _ours(tensor, params)))


def _foreign(
    tensor: Tensor, outline: Outline, config: DecoderConfig, params: Params
) -> np.ndarray:
    foreign = np.empty(outline.shape, outline.dtype)
    ours = [np.asarray(array) for array in _ours(tensor, params)]
    for theirs, mine in tensor.pairs(config, foreign, ours):
        theirs[...] = mine
    return foreign


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    if tokenizer is None:
        return
    if isinstance(tokenizer, ChatTokenizer):
        tokenizer.save(folder)
        return
    if isinstance(tokenizer, text.Tokenizer):
        _write_own(folder, tokenizer)
        return
    if isinstance(tokenizer, tokenizers.Tokenizer):
        data = tokenizer.to_str().encode()
    elif isinstance(tokenizer, str | os.PathLike):
        data = Path(tokenizer).read_bytes()
    else:
        raise ValueError(
            "tokenizer must be one of haiku_mqa.text, one that came with a model, a "
            "tokenizers.Tokenizer or the path of a tokenizer.json, got "
            f"{type(tokenizer).__name__}"
        )
    write_whole(folder / TOKENIZER, data)


def _write_own(folder: Path, tokenizer: text.Tokenizer) -> None:
    library, ends = tokenizer.to_library(), tokenizer.end_tokens
    if not ends:
        write_tokenizer(folder, library)
        return
    # A special token, for others to leave out of what they decode; but none that they
    # find spelled in a text.
    end = library.id_to_token(ends[0])
    write_tokenizer(folder, library, eos_token=end, split_special_tokens=True)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(data, indent=2) + "\n").encode())
