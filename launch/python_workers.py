"""Spark's Python workers: processes on executors that run one task after another.

Between two tasks pyspark collects garbage and invalidates the caches of the import system, which may take
longer than the tasks themselves. What a task calls here makes that cheap for the tasks after it.
"""

from __future__ import annotations

import functools
import gc
import sys
import zipimport


def forget_archives() -> None:
    """Forgets the zip archives that modules were imported from, until a module is imported from them again.

    Before Python 3.12 an archive whose caches are invalidated is read at once, and again for each package in
    it: 60 ms a task for pyspark.zip and the jar beside it.
    """
    if sys.version_info < (3, 12):
        for path, finder in list(sys.path_importer_cache.items()):
            if isinstance(finder, zipimport.zipimporter):
                sys.path_importer_cache.pop(path, None)
                # A finder that is made later must not take an old directory of an archive that was replaced.
                zipimport._zip_directory_cache.pop(finder.archive, None)


@functools.cache
def spare_modules() -> None:
    """Leaves the objects that exist now, most of them modules', out of later collections; once in a process.

    To look through the modules of Arrow and pandas takes 40 ms a task.
    """
    gc.collect()
    gc.freeze()
