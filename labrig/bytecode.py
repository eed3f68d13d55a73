"""Compile what the labs and JupyterLab import, and nothing else: run inside an image while it is built.

A student's user cannot write to the environment, so without this every start of a container would compile torch anew;
compiling every file would make the image a fifth larger, for files that are hardly ever imported (docs/measured.md).
Standard library only. The result holds no times and is not compared with its source at each import (unchecked hashes,
PEP 552), so the same wheels give the same bytes.

    python bytecode.py [MODULE ...]      modules that are not installed are passed over
"""

from __future__ import annotations

import importlib
import importlib.util
import py_compile
import sys

MODULES = (
    "torch.utils.data",
    "torchvision",
    "torchaudio",
    "numpy",
    "scipy.stats",
    "sklearn.cluster",
    "sklearn.datasets",
    "sklearn.decomposition",
    "sklearn.ensemble",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.model_selection",
    "sklearn.naive_bayes",
    "sklearn.neighbors",
    "sklearn.pipeline",
    "sklearn.preprocessing",
    "sklearn.semi_supervised",
    "sklearn.svm",
    "sklearn.tree",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "jupyterlab.labapp",
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
)


def main(names: list[str]) -> None:
    sys.dont_write_bytecode = True
    for name in names or MODULES:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    files = {str(getattr(module, "__file__", "")) for module in list(sys.modules.values())}
    own = sorted(file for file in files if file.endswith(".py") and file.startswith(sys.prefix))
    for file in own:
        py_compile.compile(file, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    print(f"compiled {len(own)} modules")


if __name__ == "__main__":
    main(sys.argv[1:])
