"""Models out of files: weights, configs, tokenizers and chat templates.

A model file is a stranger's. What is read here is checked before it is believed,
and what cannot be meant ends in an error that says where.
"""

from haiku_mqa.pretrained.chat import render_chat
from haiku_mqa.pretrained.chat_tokenizer import ChatTokenizer
from haiku_mqa.pretrained.families import (
    Family,
    Keys,
    Tensor,
    family_named,
    family_names,
)
from haiku_mqa.pretrained.folder import (
    config_from_folder,
    family_of_folder,
    from_pretrained,
    is_pretrained_folder,
    stored_dtypes,
)
from haiku_mqa.pretrained.folder_tokenizer import (
    FolderTokenizer,
    tokenizer_from_folder,
)
from haiku_mqa.pretrained.folder_writing import save_pretrained
from haiku_mqa.pretrained.gguf import GGUFFile, GGUFTensor, read_gguf
from haiku_mqa.pretrained.gguf_params import config_from_gguf, params_from_gguf
from haiku_mqa.pretrained.loading import Pretrained, read_pretrained
from haiku_mqa.pretrained.peft import load_adapters, save_adapters
from haiku_mqa.pretrained.special_tokens import SpecialTokens
from haiku_mqa.pretrained.tokenizer import (
    StreamDecoder,
    Tokenizer,
    tokenizer_from_gguf,
)

__all__ = [
    "ChatTokenizer",
    "Family",
    "FolderTokenizer",
    "GGUFFile",
    "GGUFTensor",
    "Keys",
    "Pretrained",
    "SpecialTokens",
    "StreamDecoder",
    "Tensor",
    "Tokenizer",
    "config_from_folder",
    "config_from_gguf",
    "family_named",
    "family_names",
    "family_of_folder",
    "from_pretrained",
    "is_pretrained_folder",
    "load_adapters",
    "params_from_gguf",
    "read_gguf",
    "read_pretrained",
    "render_chat",
    "save_adapters",
    "save_pretrained",
    "stored_dtypes",
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
]
