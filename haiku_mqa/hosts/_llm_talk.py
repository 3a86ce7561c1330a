"""What a model says in the program ``llm``, and all that its plugin must not import."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.config import DType
from haiku_mqa.generation import Conversation, Sampling
from haiku_mqa.quantization import Quantization
from haiku_mqa.streaming import text_decoder
from haiku_mqa.zoo.loading import load_pretrained

_NEW_TOKENS = 512
_OF_A_CORPUS = 0.8  # the temperature for a model that goes on and does not answer


class Talk:
    """A loaded model, and what it has read.

    Attributes:
      read: How many tokens the last prompt had.
      made: How many its answer had.
      reused: How many of the prompt's were in the cache, and were not read again.
    """

    def __init__(self, source: str, dtype: DType, quantize: Quantization | None):
        """Loads a model.

        Args:
          source: A name of the zoo, a file or a folder.
          dtype: What its weights are held in and computed with.
          quantize: What its matrices are held in instead.

        Raises:
          ValueError: There is no such model, or it has no weights or no tokenizer.
        """
        prepare_jax()
        loaded = load_pretrained(source, dtype=dtype, quantize=quantize)
        if loaded.tokenizer is None:
            raise ValueError(f"model {source!r} has no tokenizer: it reads no text")
        self.read = self.made = self.reused = 0
        self._source = source
        self._model, self._params = loaded.model, loaded.params
        self._tokenizer: Any = loaded.tokenizer
        self._answers = getattr(loaded.tokenizer, "chat_template", None) is not None
        self._conversation: Conversation | None = None
        self._sampling: Sampling | None = None

    def answer(self, messages: Sequence[dict[str, str]], options: Any) -> Iterator[str]:
        """Yields what comes next in a talk, in pieces of whole characters.

        Args:
          messages: The talk so far.
          options: As the plugin describes them.

        Raises:
          ValueError: The model cannot read this, or its context is full.
          FloatingPointError: The model's logits were NaN.
        """
        ids = self._ids(messages)
        room = self._model.config.max_length - len(ids)
        if room < 1:
            raise ValueError(
                f"this talk has {len(ids):,} tokens, and the context of "
                f"{self._model.config.max_length:,} holds no answer beside them"
            )
        conversation = self._with(self._sampling_of(options))
        self.read, self.made = len(ids), 0
        decoder = text_decoder(self._tokenizer)
        for tokens in conversation.ask(
            ids,
            max_new_tokens=min(room, options.max_tokens or _NEW_TOKENS),
            rng=jax.random.key(options.seed),
        ):
            self.made += len(tokens)
            self.reused = conversation.reused
            yield "".join(map(decoder.push, tokens))
        yield decoder.finish()

    def _ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if self._answers:
            return list(self._tokenizer.encode_chat(messages))
        if any(message["role"] == "system" for message in messages):
            raise ValueError(
                f"model {self._source!r} has no chat template: it goes on with a text, "
                "and has no place for a system prompt"
            )
        return list(
            self._tokenizer.encode("".join(message["content"] for message in messages))
        )

    def _sampling_of(self, options: Any) -> Sampling:
        usual = 0.0 if self._answers else _OF_A_CORPUS
        return Sampling(
            temperature=usual if options.temperature is None else options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
        )

    def _with(self, sampling: Sampling) -> Conversation:
        if self._conversation is None or sampling != self._sampling:
            self._sampling = sampling
            self._conversation = Conversation(
                self._model,
                self._params,
                sampling=sampling,
                end_tokens=tuple(getattr(self._tokenizer, "end_tokens", ())),
            )
        return self._conversation
