"""How verbs measure a model on a text."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from haiku_mqa.model import Model, Params
    from haiku_mqa.training import Corpus, Evaluation


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A text as a model reads it.

    Attributes:
      ids: Whole numbers ``[num_tokens]``.
      num_bytes: How many bytes of UTF-8 the tokens after the first say.
    """

    ids: np.ndarray
    num_bytes: int


def read_text_or_validation(file: str | None, characters: int | None = None) -> Corpus:
    """Returns the text of a file, or the embedded corpus's validation part.

    Args:
      file: What ``haiku_mqa.training.read_corpus`` reads; ``None`` for the embedded.
      characters: How many of the first ones are kept; all if ``None``.

    Returns:
      The text, as a corpus.

    Raises:
      ValueError: There is no such file, or no text in it.
    """
    from haiku_mqa.training import Corpus, read_corpus, split

    corpus = split(read_corpus())[1] if file is None else read_corpus(file)
    if characters is None or corpus.num_characters <= characters:
        return corpus
    return Corpus((corpus.text[:characters],), name=corpus.name)


def tokens_of(corpus: Corpus, tokenizer: Any) -> Tokens:
    """Returns a text as tokens.

    Args:
      corpus: The text. Between two documents stands the token that ends a text, where
        the tokenizer has one.
      tokenizer: Any that ``haiku_mqa.load_pretrained`` returns.

    Returns:
      The tokens.

    Raises:
      ValueError: The tokenizer cannot read it.
    """
    import numpy as np

    ends = list(getattr(tokenizer, "end_tokens", ()))[:1]
    ids: list[int] = []
    for place, document in enumerate(corpus.documents):
        ids += [*(ends if place else ()), *tokenizer.encode(document)]
    # What begins a text says nothing. Half a character is one byte of it.
    first = tokenizer.decode(ids[:1])
    unscored = 1 if "\ufffd" in first else len(first.encode())
    return Tokens(np.asarray(ids, np.int32), max(0, corpus.num_bytes - unscored))


def measure(
    model: Model, params: Params, tokens: Tokens, title: str, **options: Any
) -> Evaluation:
    """Returns how well a model predicts a text, with a bar meanwhile.

    Args:
      model: The model.
      params: Its parameters.
      tokens: The text.
      title: What the bar is called.
      **options: Of ``haiku_mqa.training.evaluate``.

    Returns:
      The evaluation.

    Raises:
      ValueError: The text is too short, or an option is out of range.
      FloatingPointError: The loss is not finite.
    """
    from tqdm import tqdm

    from haiku_mqa.training import evaluate

    with tqdm(
        total=len(tokens.ids) - 1,
        desc=title,
        unit="token",
        unit_scale=True,
        file=sys.stderr,
        disable=None,
        leave=False,
    ) as bar:
        return evaluate(
            model,
            params,
            tokens.ids,
            num_bytes=tokens.num_bytes,
            on_batch=bar.update,
            **options,
        )
