"""Data sets by name: bundled with scikit-learn, read from a folder (`data_dir`), or drawn from a seed.

Each comes as tensors with a fixed split into a training and a test part and a hash of what was loaded. Nothing is
downloaded, no pickle is read, and no global random state is used.
"""

from sgdscope.datasets.sets import Dataset as Dataset
from sgdscope.datasets.sets import catalogue as catalogue
from sgdscope.datasets.sets import load as load
from sgdscope.datasets.sets import names as names
