"""An archive of this environment for Spark's executors, as venv-pack makes one."""

import sys
import tarfile
from pathlib import Path


def pack(file: Path) -> None:
    """Packs this environment as links to its files: an archive of it without its gigabytes."""
    root = Path(sys.prefix)
    names = [name for name in root.iterdir() if name.name != "bin"]
    with tarfile.open(file, "w:gz") as archive:
        for path in [*names, *(root / "bin").iterdir()]:
            link = tarfile.TarInfo(str(path.relative_to(root)))
            link.type, link.linkname = tarfile.SYMTYPE, str(path)
            archive.addfile(link)
