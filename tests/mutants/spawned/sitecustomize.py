"""Gives a spawned subprocess of a test the changed module of its parent (see `mutants.trial`)."""

import importlib.machinery
import json
import os
import sys


class _Changed(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def find_spec(self, fullname, path, target=None):
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.path) if fullname == self.name else None

    def get_code(self, fullname):
        return compile(self._source, self.path, "exec", dont_inherit=True)


sys.meta_path.insert(0, _Changed(**json.loads(os.environ["LEM_MUTANT"])))
