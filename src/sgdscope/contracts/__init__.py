"""The five shapes (store, walker, ensemble, quantity, claim), Source, and the catalogues.

Each shape is registered by a decorator and found by listing the folder; the decorated thing stays an ordinary
importable function or class. Adding one is adding a file: nothing here is edited.
"""

from sgdscope.contracts.catalogue import Catalogue, Source
from sgdscope.contracts.measurements import (
    Quantity,
    QuantityEntry,
    Variable,
    columns,
    declare,
    ends,
    measurement,
    quantities,
    quantity,
    scalars,
)
from sgdscope.contracts.verdicts import Answer, ClaimEntry, Controls, Evidence, Scope, Verdict, claim, claims
from sgdscope.contracts.walks import Ensemble, Store, StoreEntry, WalkerEntry, ensemble, ensembles, store, stores, walker, walkers

__all__ = [
    "Answer",
    "Catalogue",
    "ClaimEntry",
    "Controls",
    "Ensemble",
    "Evidence",
    "Quantity",
    "QuantityEntry",
    "Scope",
    "Source",
    "Store",
    "StoreEntry",
    "Variable",
    "Verdict",
    "WalkerEntry",
    "claim",
    "claims",
    "declare",
    "ensemble",
    "ensembles",
    "measurement",
    "quantities",
    "quantity",
    "scalars",
    "store",
    "stores",
    "walker",
    "walkers",
    "columns",
    "ends",
]
