"""The claims of "A Walk with SGD" (Xing, Arpit, Tsirigotis, Bengio 2018): every file of this folder is read."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
