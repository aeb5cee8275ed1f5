"""The README says what the code does: its table is the registry's, its files exist, its Python runs."""

import re
from pathlib import Path

import pytest

from longtail.__main__ import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_table_is_the_registrys(capsys):
    assert main(["methods", "--markdown"]) == 0
    assert re.search(r"<!-- methods -->\n(.*?)<!-- /methods -->", README, re.S).group(1) == capsys.readouterr().out


def test_files_it_names_exist():
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README) + re.findall(r"assets/examples/\S+?\.png", README):
        assert (ROOT / path).exists(), path


def test_the_house_is_drawn_as_it_stands():
    house = README.split("## The house")[1].split("```")[1]
    for room in ("demo", "longtail"):
        modules = {p.name for p in (ROOT / room).glob("*.py")} - {"__init__.py", "__main__.py"}
        listed = re.search(rf"^{room}/\n((?:  .*\n)+)", house, re.M)[1]
        assert modules == set(re.findall(r"^  (\w+\.py)", listed, re.M)), room


def test_top_level_is_exactly_what_the_design_names():
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    allowed = {"app.py", "demo", "longtail", "assets", "tests", "requirements.txt", "README.md", "LICENSE",
               "pyproject.toml", "Makefile", ".ci", ".github", ".gitignore", ".gitattributes"}  # fmt: skip
    assert {path.split("/")[0] for path in listed} <= allowed


CODE = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", [code for code in CODE if "gradio_client" not in code])  # that: tests/test_api.py
def test_its_python_runs(code, monkeypatch, tiny):
    import longtail

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(longtail, "load", lambda name: tiny)
    before = dict(longtail.REDUCERS)
    exec("import torch, longtail\nfrom dataclasses import dataclass\n"
         "from longtail import Reduced, Reducer, param, register\n" + code, {})  # fmt: skip
    for name in set(longtail.REDUCERS) - set(before):
        del longtail.REDUCERS[name]
