"""The claims of "Three Factors Influencing Minima in SGD" (Jastrzebski et al. 2017): every file of this folder is read."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
