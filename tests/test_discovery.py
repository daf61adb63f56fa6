"""Plugins are known without an import, and whatever is wrong with one stays with that one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import omlab
from omlab.cli.main import main
from omlab.errors import PluginError, UnknownName
from omlab.listing import row_of, state_of_row
from omlab.plugins import Registry
from omlab.settings import Settings
from omlab.vocabulary import Kind
from omlab.weights import state_of
from support import MODEL_TABLE


def _registry() -> Registry:
    return Registry.discover(failures_file=Settings.from_environment().failures_file)


def test_list_imports_no_plugin_no_numpy_no_engine(install_plugin, tmp_path):
    for number in range(30):
        install_plugin(f"many{number}", code="raise SystemExit('imported')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from omlab.cli.main import main; code = main(['list'])\n"
        "heavy = {'numpy', 'torch', 'onnxruntime', 'openvino', 'scipy', 'nibabel', 'pydicom', 'SimpleITK', 'PIL'}\n"
        "print(code, sorted(heavy & set(sys.modules)), [m for m in sys.modules if m.startswith('omlab_')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 [] []"
    assert "many29" in done.stdout


@pytest.mark.parametrize(
    ("manifest", "reason", "remedy"),
    [
        ("api = 2\n", "version 2 of omlab's plugin interface, this omlab has 1", "Upgrade omlab"),
        ("api = 'one'\n", "'api' must be a whole number", "api = 1"),
        ("api = \n", "no valid TOML", "line"),
        ("api = 1\n[[modell]]\nname='x'\n", "'modell' is no kind of contribution", "model"),
        ("api = 1\n[model]\nname='x'\n", "must be written as [[model]]", "brackets"),
        ("api = 1\n[[model]]\nname='x'\n", "model 'x': summary: missing", "ModelCard"),
        ("api = 1\n" + MODEL_TABLE.format(name="x") * 2, "model 'x' is there twice", "Rename"),
        ("api = 1\n" + MODEL_TABLE.format(name="x").replace('"mr"', '"mri"'), "modality: 'mri' is no modality", ""),
        ("api = 1\n" + MODEL_TABLE.format(name="X y"), "is no name", ""),
        ("api = 1\n" + MODEL_TABLE.format(name="x").replace("limits", "limit"), "did you mean 'limits'", ""),
    ],
)
def test_a_bad_manifest_breaks_only_its_own_plugin(install_plugin, manifest, reason, remedy):
    install_plugin("good")
    install_plugin("bad", manifest=manifest)
    registry = _registry()
    assert "good" in registry.cards(Kind.MODEL)
    (broken,) = registry.broken
    assert broken.distribution == "omlab-bad"
    assert reason in broken.reason
    assert remedy in broken.remedy


def test_a_missing_package_or_manifest_is_broken(install_plugin):
    install_plugin("gone", package=False)
    (install_plugin("bare") / "omlab.toml").unlink()
    reasons = {b.plugin: b.reason for b in _registry().broken}
    assert "cannot be found" in reasons["gone"]
    assert "missing" in reasons["bare"]


def test_the_plugin_named_after_a_name_keeps_it(install_plugin):
    install_plugin("another", manifest="api = 1\n" + MODEL_TABLE.format(name="wanted"), distribution="aaa-squatter")
    install_plugin("wanted")
    registry = _registry()
    assert registry.owner(Kind.MODEL, "wanted").distribution == "omlab-wanted"
    (broken,) = registry.broken
    assert broken.distribution == "aaa-squatter"
    assert "omlab-wanted 1.0" in broken.reason


def test_a_failing_import_is_told_once_remembered_and_forgotten_when_mended(install_plugin, capsys):
    folder = install_plugin("flaky", code="import surely_missing_module")
    with pytest.raises(PluginError, match="surely_missing_module"):
        _registry().load(Kind.MODEL, "flaky")
    (broken,) = _registry().broken
    assert "surely_missing_module" in broken.reason
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "Traceback" in out
    assert "surely_missing_module" in out
    (folder / "__init__.py").write_text(
        "from omlab import hookimpl\n@hookimpl\ndef omlab_model(card): return card.name\n"
    )
    sys.modules.pop("omlab_flaky", None)
    assert _registry().load(Kind.MODEL, "flaky") == "flaky"


def test_hooks_are_checked_against_their_specs(install_plugin):
    install_plugin("wrong", code="from omlab import hookimpl\n@hookimpl\ndef omlab_model(kard): return 1\n")
    install_plugin("unknown", code="from omlab import hookimpl\n@hookimpl\ndef omlab_modell(card): return 1\n")
    install_plugin("silent", code="")
    registry = _registry()
    with pytest.raises(PluginError, match="kard"):
        registry.load(Kind.MODEL, "wrong")
    with pytest.raises(PluginError, match="omlab_modell"):
        registry.load(Kind.MODEL, "unknown")
    with pytest.raises(PluginError, match="gives nothing"):
        registry.load(Kind.MODEL, "silent")


def test_only_the_owner_of_a_name_is_imported_and_asked(install_plugin):
    answer = "from omlab import hookimpl\n@hookimpl\ndef omlab_model(card): return '{0} for ' + card.name\n"
    install_plugin("one", code=answer.format("one"))
    install_plugin("two", code=answer.format("two"))
    registry = _registry()
    assert registry.load(Kind.MODEL, "two") == "two for two"
    assert "omlab_one" not in sys.modules
    assert registry.load(Kind.MODEL, "one") == "one for one"


def test_unknown_names_get_near_ones(install_plugin, capsys):
    install_plugin("deepnet")
    with pytest.raises(UnknownName, match="deepnet"):
        _registry().card(Kind.MODEL, "depnet")
    assert main(["run", "depnet", "x.nii"]) == 2
    assert "Did you mean: deepnet" in capsys.readouterr().err
    assert main(["info", "depnet"]) == 2
    assert "deepnet (model)" in capsys.readouterr().err
    assert main(["lsit"]) == 2


def test_list_filters_and_speaks_json(install_plugin, capsys):
    install_plugin("brainy")
    install_plugin("bad", manifest="api = 9\n")
    assert main(["list", "--modality", "ct", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "brainy" not in {c["name"] for c in found["contributions"] if c["kind"] == "model"}
    assert main(["list", "models", "--modality", "mr", "--task", "segmentation", "--input", "3d", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "brainy" in {c["name"] for c in found["contributions"]}
    assert found["broken"][0]["plugin"] == "omlab-bad"
    assert main(["info", "brainy", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["licence_weights"] == {"spdx": "MIT", "consent": False}
    assert main(["info", "brainy"]) == 0
    assert "Not for use" in capsys.readouterr().out


def test_freeze_and_sync(install_plugin, tmp_path, capsys):
    install_plugin("kept")
    frozen = tmp_path / "plugins.txt"
    assert main(["plugins", "freeze", "-o", str(frozen)]) == 0
    assert "omlab-kept==1.0" in frozen.read_text()
    assert main(["plugins", "sync", str(frozen)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    frozen.write_text("omlab-kept==1.0\nomlab-lost==2.0\n")
    assert main(["plugins", "sync", str(frozen), "--dry-run"]) == 0
    assert capsys.readouterr().out.strip() == "would install omlab-lost==2.0"
    assert main(["plugins", "sync", str(tmp_path / "none.txt")]) == 1


def test_every_public_name_exists_and_is_typed():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(omlab.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    typed.pop("Any", None)
    served = {name: omlab._PUBLIC[name] for name in omlab._PUBLIC}
    assert typed == served
    for name in omlab.__all__:
        assert getattr(omlab, name) is not None


def test_help_of_every_command_works():
    from omlab.cli.main import cli

    runner = CliRunner()
    assert runner.invoke(cli, ["--help"]).exit_code == 0
    for name in Registry.discover().cards(Kind.COMMAND):
        done = runner.invoke(cli, [name, "--help"])
        assert done.exit_code == 0, (name, done.output, done.exception)


def test_rows_of_manifests_are_remembered_until_they_change(install_plugin, own_home):
    path = install_plugin("one") / "omlab.toml"
    memory = Settings.from_environment().manifests_file

    def models() -> set[str]:
        return set(Registry.discover(manifests_file=memory).names(Kind.MODEL))

    assert "one" in models()
    kept = json.loads(memory.read_text("utf-8"))
    kept["manifests"][str(path)][1][0]["name"] = "remembered"
    memory.write_text(json.dumps(kept), "utf-8")
    assert "remembered" in models()
    # The card is read from the file, which has no such model.
    with pytest.raises(PluginError, match="changed while it was read"):
        Registry.discover(manifests_file=memory).card(Kind.MODEL, "remembered")
    memory.write_text(json.dumps(kept | {"form": "of an older omlab"}), "utf-8")
    assert "one" in models()
    path.write_text(path.read_text("utf-8").replace('"one"', '"another"'), "utf-8")
    assert "another" in models()
    memory.write_text("[1, 2", "utf-8")
    assert "another" in models()
    memory.unlink()
    memory.mkdir()  # cannot be written
    assert "another" in models()


def test_remembered_rows_show_what_cards_show(own_home, capsys):
    assert main(["list"]) == 0
    first = capsys.readouterr().out
    settings = Settings.from_environment()
    size = settings.manifests_file.stat().st_size
    registry = Registry.discover(manifests_file=settings.manifests_file)
    # Once more, from the memory, which holds no card of a model.
    assert main(["list"]) == 0
    assert capsys.readouterr().out == first
    for kind in Kind:
        cards = registry.cards(kind)
        rows = registry.rows(kind)
        assert [row["name"] for row in rows] == list(cards) == registry.names(kind)
        for row, card in zip(rows, cards.values(), strict=True):
            assert json.loads(json.dumps(row_of(kind, card))) == row
            assert state_of(card, settings) == state_of_row(row, settings)
    assert size < 2000 * sum(len(registry.names(kind)) for kind in Kind)
