"""``{laws} decoder`` and its like: tables of laws, as the code has them."""

from __future__ import annotations

import types
from typing import Any

from sphinx.util.docutils import SphinxDirective

from haiku_mqa.testing import ATTENTION_LAWS, DECODER_LAWS, SHARDING_LAWS

LAWS = {"decoder": DECODER_LAWS, "attention": ATTENTION_LAWS, "mesh": SHARDING_LAWS}
# A decoder that keeps the contract and has nothing else of this package.
STRANGER = types.SimpleNamespace(config=None, is_ours=False, empty_cache=lambda: None)


class Laws(SphinxDirective):
    """A table of laws."""

    required_arguments = 1

    def run(self) -> list[Any]:
        head = ["law", "what it says", "allowed error"]
        of_decoders = self.arguments[0] == "decoder"
        if of_decoders:
            head.append("for whom")
        rows = [head, ["---"] * len(head)]
        for law in LAWS[self.arguments[0]]:
            error = f"{law.tolerance:g}".replace("e-0", "e-")
            row = [law.name, law.statement, error]
            if of_decoders:
                row.append("any decoder" if law.applies(STRANGER) else "this package's")
            rows.append(row)
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("laws", Laws)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
