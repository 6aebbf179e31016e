"""How long ``sgdscope --help`` takes, against importing what it is built from."""

import statistics
import subprocess
import sys
import time


def _seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def rows() -> list[dict[str, object]]:
    """Measure in fresh processes, interleaved.

    Returns:
        One row.
    """
    command = "import sys; sys.argv = ['sgdscope', '--help']; from sgdscope.cli import main; main()"
    pairs = [(_seconds(command), _seconds("import typer, rich")) for _ in range(9)]
    ratio = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    return [{"what": "sgdscope --help / import typer, rich", "ratio": ratio, "aim": "<= 3", "setting": "fresh processes, n=9"}]
