"""The claims of "A Diffusion Theory For Deep Learning Dynamics" (Xie, Sato, Sugiyama 2021): every file of this folder is read."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
