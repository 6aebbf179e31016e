"""The claims on the sharpest directions of SGD (Jastrzebski et al. 2019, arXiv 1807.05031): every file of this folder is read."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
