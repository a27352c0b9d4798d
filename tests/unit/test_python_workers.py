"""What makes later tasks of a Python worker cheap: archives are forgotten, modules are not collected."""

import gc
import importlib
import sys
import zipfile
import zipimport

import pytest

from hvdkeras.launch.python_workers import forget_archives, spare_modules


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A zip archive in sys.path with a package, of which a module is imported, and a way to write it anew."""
    path = tmp_path / "archived.zip"

    def write(**modules):
        with zipfile.ZipFile(path, "w") as file:
            for name, value in {"__init__": 0, **modules}.items():
                file.writestr(f"archived_package/{name}.py", f"value = {value}")

    write(first=1)
    monkeypatch.syspath_prepend(str(path))
    assert importlib.import_module("archived_package.first").value == 1
    yield path, write
    for name in [name for name in sys.modules if name.startswith("archived_package")]:
        del sys.modules[name]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python reads archives when it needs them")
def test_archives_are_read_when_a_module_is_imported_and_not_when_caches_are_invalidated(
    archive, monkeypatch
):
    path, write = archive
    read, reads = zipimport._read_directory, []
    monkeypatch.setattr(zipimport, "_read_directory", lambda archive: reads.append(archive) or read(archive))
    importlib.invalidate_caches()
    assert reads.count(str(path)) == 2  # for the archive itself and for the package in it
    forget_archives()
    reads.clear()
    importlib.invalidate_caches()
    assert reads == []
    # The archive was replaced meanwhile.
    write(first=3, second=2)
    assert importlib.import_module("archived_package.second").value == 2
    assert reads.count(str(path)) == 1
    forget_archives()
    del sys.modules["archived_package.first"]
    assert importlib.import_module("archived_package.first").value == 3


def test_modules_are_left_out_of_collections_once(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.get_count()))
    spare_modules.cache_clear()
    spare_modules()
    spare_modules()
    spare_modules.cache_clear()
    assert len(frozen) == 1
