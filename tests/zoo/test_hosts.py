"""The contract, held to by a host and by plugins that owe nothing to this package."""

import json
import os
import site
import subprocess
import sys
import tomllib
import venv

import pytest

from tests.readme_blocks import REPOSITORY, blocks

OURS = {"mqa-decoder", "shakespeare-mqa", "smollm2-135m"}

# A plugin in plain Python: its model says how often each token came before.
GOOD = """
import types

def make(api_version=1, name="counter"):
    metadata = types.SimpleNamespace(
        description="counts tokens", license="0BSD", citation="", source="",
        sha256=None, capabilities=("logits",))
    return types.SimpleNamespace(
        api_version=api_version, name=name, version="1.2", metadata=metadata,
        config={"vocab_size": 3}, init=lambda rng, tokens: {}, apply=apply,
        init_cache=lambda batch_size, max_length: None,
        load_params=None, load_tokenizer=None)

def apply(params, rng, tokens):
    logits = [[[row[:t + 1].count(v) for v in range(3)] for t in range(len(row))]
              for row in tokens]
    return types.SimpleNamespace(logits=logits, cache=None)
"""

# A host that never heard of this package either.
HOST = """
from importlib.metadata import entry_points

def models():
    return sorted(
        (entry.name, entry.dist.name, entry.dist.version)
        for entry in entry_points(group="haiku_zoo.models"))

def use(name, rng, tokens):
    (entry,) = entry_points(group="haiku_zoo.models", name=name)
    spec = entry.load()()
    if spec.api_version != 1 or "logits" not in spec.metadata.capabilities:
        raise ValueError(name)
    return spec.apply(spec.init(rng, tokens), None, tokens).logits
"""

# name: (version, entry, code of its module)
PLUGINS = {
    "good-plugin": ("1.2", "counter", GOOD),
    "raising-plugin": ("0.3", "raising", "raise RuntimeError('no such device')"),
    "exiting-plugin": ("0.4", "exiting", "import sys; sys.exit('goodbye')"),
    "first-twin": ("1.0", "twin", GOOD),
    "second-twin": ("2.0", "twin", GOOD),
    "future-plugin": ("9.0", "future", f"{GOOD}\nmake.__defaults__ = (2, 'future')"),
}


def _plugin_of_the_docs():
    """The module that docs/zoo.md shows, and its entry points."""
    shown = blocks(REPOSITORY / "docs/zoo.md")
    code, about = (
        next(block.text for block in shown if block.kind == kind)
        for kind in ("python", "toml")
    )
    entries = tomllib.loads(about)["project"]["entry-points"]["haiku_zoo.models"]
    lines = [f"{name} = {value}" for name, value in entries.items()]
    return code, "\n".join(["[haiku_zoo.models]", *lines, ""])


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_wheel):
    """``run(code)``, in an environment with the host and plugins -> what it prints.

    What the tests themselves run with (jax, this package) is seen there too.
    """
    folder = tmp_path_factory.mktemp("host")
    wheels = [make_wheel(folder, "other-host", "1.0", {"other_host.py": HOST})]
    code, entry_points = _plugin_of_the_docs()
    files = {"my_plugin.py": code}
    wheels.append(
        make_wheel(folder, "my-plugin", "1.0", files, entry_points=entry_points)
    )
    for name, (version, entry, code) in PLUGINS.items():
        module = name.replace("-", "_")
        wheels.append(
            make_wheel(
                folder,
                name,
                version,
                {f"{module}.py": code},
                entry_points=f"[haiku_zoo.models]\n{entry} = {module}:make\n",
            )
        )
    venv.create(folder / "env", system_site_packages=False, with_pip=False)
    python = folder / "env/bin/python"
    env = os.environ | {
        "PIP_CONFIG_FILE": os.devnull,
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(folder / "cache"),  # stevedore keeps what it found
    }
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet"]
    install = ["install", "--no-index", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, *install, *wheels], env=env, check=True, timeout=60)
    (packages,) = (folder / "env/lib").glob("python*/site-packages")
    (packages / "outer.pth").write_text(
        "".join(
            f"import site; site.addsitedir({outer!r})\n"
            for outer in site.getsitepackages()
        )
    )

    def run_code(code):
        # Isolated: neither a checkout nor PYTHONPATH may stand in for an install.
        done = subprocess.run(
            [python, "-I", "-c", f"import json, sys\n{code}"],
            env=env,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run_code


@pytest.fixture(scope="module")
def seen_by_host(run):
    """The models that the other host lists, and the modules imported by then."""
    return run(
        "import other_host\nprint(json.dumps([other_host.models(), list(sys.modules)]))"
    )


@pytest.fixture(scope="module")
def discovered(run):
    """What ``zoo.discover`` lists: name to (distribution, version, error)."""
    return run(
        "from haiku_mqa import zoo\n"
        "print(json.dumps({name: (e.distribution, e.distribution_version, e.error)\n"
        "                  for name, e in zoo.discover().items()}))"
    )


@pytest.fixture(scope="module")
def failures(run):
    """What ``zoo.load`` says of each plugin, one after the other in one process."""
    return run(
        "from haiku_mqa import PluginError, zoo\n"
        "said = {}\n"
        "for name in ('raising', 'exiting', 'twin', 'future', 'counter'):\n"
        "    try:\n"
        "        said[name] = [zoo.load(name).version, '']\n"
        "    except PluginError as error:\n"
        "        said[name] = [str(error), type(error.__cause__).__name__]\n"
        "print(json.dumps(said))"
    )


def test_other_host_lists_our_models_beside_the_others_and_imports_nothing(
    seen_by_host,
):
    models, modules = seen_by_host
    assert {name for name, _, _ in models} >= OURS | {
        entry for _, entry, _ in PLUGINS.values()
    }
    assert {owner for name, owner, _ in models if name in OURS} == {"haiku-mqa"}
    imported = {module.partition(".")[0] for module in modules}
    assert not {"haiku_mqa", "jax", "good_plugin", "raising_plugin"} & imported


def test_other_host_runs_our_model_unchanged(run):
    shape, dtype = run(
        "import other_host, jax, jax.numpy as jnp\n"
        "tokens = jnp.zeros([2, 5], jnp.int32)\n"
        "logits = other_host.use('mqa-decoder', jax.random.key(0), tokens)\n"
        "print(json.dumps([logits.shape, str(logits.dtype)]))"
    )
    assert (shape, dtype) == ([2, 5, 256], "float32")


def test_other_host_runs_a_plugin_without_this_package(run):
    logits, ours = run(
        "import other_host\n"
        "logits = other_host.use('counter', None, [[0, 2, 2]])\n"
        "print(json.dumps([logits, 'haiku_mqa' in sys.modules]))"
    )
    assert logits == [[[1, 0, 0], [1, 0, 1], [1, 0, 2]]]
    assert not ours


def test_plugin_of_the_docs_is_found_and_held_to_the_laws(run):
    code, printed = run(
        "import contextlib, io\n"
        "from haiku_mqa.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as printed:\n"
        "    laws = ['--laws', 'shape,causality', '--examples', '1']\n"
        "    code = main(['zoo', 'check', 'tiny', *laws])\n"
        "print(json.dumps([code, printed.getvalue()]))"
    )
    assert code == 0
    title, _, *rows = printed.splitlines()
    assert title.startswith("tiny 1.0, ")
    assert [row.split()[0] for row in rows] == ["shape", "causality"]


def test_stevedore_loads_our_model_unchanged(run):
    code = (
        "from stevedore.driver import DriverManager\n"
        "driver = DriverManager('haiku_zoo.models', 'mqa-decoder', "
        "invoke_on_load=True).driver\n"
        "print(json.dumps([driver.name, driver.config.num_kv_heads]))"
    )
    assert run(code) == ["mqa-decoder", 1]


def test_discover_lists_what_the_other_host_lists(discovered, seen_by_host):
    assert set(discovered) == {name for name, _, _ in seen_by_host[0]}
    assert discovered["counter"] == ["good-plugin", "1.2", None]
    assert {discovered[name][0] for name in OURS} == {"haiku-mqa"}


def test_discover_finds_fault_with_the_twins_alone(discovered):
    faulty = {name for name, (_, _, error) in discovered.items() if error}
    assert faulty == {"twin"}
    assert "first-twin 1.0" in discovered["twin"][2]
    assert "second-twin 2.0" in discovered["twin"][2]


@pytest.mark.parametrize(
    ("name", "owner", "kind", "text"),
    [
        ("raising", "raising-plugin 0.3", "RuntimeError", "no such device"),
        ("exiting", "exiting-plugin 0.4", "SystemExit", "goodbye"),
        ("future", "future-plugin 9.0", "ValueError", "api_version 2"),
        ("twin", "second-twin 2.0", "NoneType", "first-twin 1.0"),
    ],
)
def test_load_tells_whose_plugin_failed(failures, name, owner, kind, text):
    message, cause = failures[name]
    assert owner in message
    assert text in message
    assert cause == kind


def test_load_of_a_good_plugin_is_not_touched_by_the_failures_before_it(failures):
    assert failures["counter"] == ["1.2", ""]
