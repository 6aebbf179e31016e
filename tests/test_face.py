"""The public names: lazy, and never shadowed by the files of the same name."""

import subprocess
import sys

import sgdscope as ss


def test_every_public_name_is_there():
    assert {"Recorder", "measure", "report", "check", "LossSurface", "open_trajectory", "every", "bursts"} <= set(dir(ss))
    for name in dir(ss):
        assert getattr(ss, name) is not None


def test_functions_win_over_files_whatever_is_imported_first():
    code = """
import sgdscope.measure
import sgdscope.report
import sgdscope as ss
assert callable(ss.measure) and callable(ss.report), (ss.measure, ss.report)
assert ss.measure is ss.measure
from sgdscope.measure import live
assert live is ss.live
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_does_not_import_torch():
    subprocess.run([sys.executable, "-c", "import sgdscope, sys; assert 'torch' not in sys.modules"], check=True)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(ss, "mesure")
