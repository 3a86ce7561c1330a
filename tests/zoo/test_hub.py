"""Models of the hub: fetched from a server beside, found again without one."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

import haiku_mqa as hm
from haiku_mqa.cli import main
from haiku_mqa.zoo.hub import folder_of, is_hub_name, parse_hub_name
from tests.models import drawn_params
from tests.pretrained.hf_tokenizers import write_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = hm.DecoderConfig(
    vocab_size=264, num_layers=1, num_heads=2, d_model=16, d_ff=16, max_length=64
)
NOWHERE = "http://127.0.0.1:9"  # where nothing listens


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a snapshot takes: what there is, and each file of it."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        if self.path.startswith("/api/models/org/tiny/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in files.items()
            ]
            return self._answer(json.dumps(entries).encode())
        if self.path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": name} for name in files]
            about = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings}
            return self._answer(json.dumps(about).encode())
        name = self.path.rpartition("/")[2]
        if f"/org/tiny/resolve/{COMMIT}/" in self.path and name in files:
            return self._answer(files[name])
        return self._answer(b"", 404)

    def _answer(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _point_at(monkeypatch, endpoint: str) -> None:
    # Both are read from the environment when the client is imported.
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    params = drawn_params(hm.build(CONFIG))
    hm.save_pretrained(folder, CONFIG, params, family="llama")
    (folder / "pytorch_model.bin").write_bytes(b"a program")
    (folder / "modeling_tiny.py").write_text("raise SystemExit")
    return write_tokenizer(folder)


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    """A server that has the model, and the client's cache, empty."""
    handler = type("Hub", (_Hub,), {"folder": model, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    _point_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    with contextlib.closing(server.socket):
        yield handler
        server.shutdown()


@pytest.mark.parametrize("name", ["hf:org/tiny", f"hf:org/tiny@{COMMIT}"])
def test_name_loads_as_the_folder_does(name, hub, model):
    loaded, wanted = hm.load_pretrained(name), hm.load_pretrained(model)
    assert loaded.model.config == wanted.model.config
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode_chat([{"role": "user", "content": "the"}])


def test_no_file_that_could_be_a_program_is_fetched(hub):
    folder = folder_of("hf:org/tiny")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling_tiny.py"}


def test_revision_is_what_is_asked_for(hub):
    folder_of("hf:org/tiny@v1.0")
    assert any(path.endswith("/revision/v1.0") for path in hub.asked)


def test_bars_show_on_a_terminal_alone_and_can_be_switched_off(hub, on_terminal, capfd):
    name = "hf:org/tiny"
    assert on_terminal(lambda: hm.load_pretrained(name, progress=False)) == ""
    assert "Fetching" in on_terminal(lambda: folder_of(name))
    folder_of(name)
    assert capfd.readouterr().err == ""


def test_what_was_fetched_is_found_without_a_network(hub, monkeypatch):
    there = folder_of("hf:org/tiny")
    _point_at(monkeypatch, NOWHERE)
    assert folder_of("hf:org/tiny") == there


def test_verbs_take_the_name(hub, capsys):
    assert main(["zoo", "info", "hf:org/tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "llama"
    words = ["generate", "--model", "hf:org/tiny", "--max-new-tokens", "2", "the"]
    assert main(words) == 0
    assert "fetching hf:org/tiny" in capsys.readouterr().err


def test_model_that_is_not_there_is_told(hub):
    with pytest.raises(hm.FetchError, match=r"org/other could not be fetched: .*404"):
        folder_of("hf:org/other")


def test_hub_out_of_reach_is_one_line(tmp_path):
    words = [sys.executable, "-m", "haiku_mqa", "zoo", "info", "hf:org/tiny"]
    where = {"HF_ENDPOINT": NOWHERE, "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        words, env=where, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line for line in lines if "fetching" not in line] == lines[-1:]
    assert lines[-1].startswith("haiku-mqa: error: hf:org/tiny could not be fetched: ")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(hm.FetchError, match=r"pip install 'haiku-mqa\[hub\]'"):
        folder_of("hf:org/tiny")


@pytest.mark.parametrize(
    "name", ["hf:", "hf:tiny", "hf:a/b/c", "hf:../x", "hf:a/b@", "hf:a/b@../c"]
)
def test_name_that_is_none_is_misuse(name, capsys):
    assert main(["generate", "--model", name, "x"]) == 2
    assert "must be hf:ORG/NAME or hf:ORG/NAME@REVISION" in capsys.readouterr().err


def test_path_is_no_name_on_the_hub():
    assert not is_hub_name("./hf:org/tiny")
    assert parse_hub_name("hf:org/tiny@refs/pr/1") == ("org/tiny", "refs/pr/1")
