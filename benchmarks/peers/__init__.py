"""Ours and the tools of others on the same work; `python -m benchmarks.peers` measures, `rows` repeats what it found last."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / ".work" / "results.json"


def rows() -> list[dict[str, object]]:
    """The table of the last measurement, for `python -m benchmarks`.

    Returns:
        One row a ratio; none where nothing was measured yet.
    """
    table = json.loads(RESULTS.read_text())["table"] if RESULTS.exists() else []
    return [
        {
            "what": f"{row['task']}: {row['what']}",
            "ratio": row["ratio"],
            "aim": "-",
            "setting": f"{row['net']} {row['stage']}, {row['points']} points, [{row['low']:.3g}..{row['high']:.3g}]",
        }
        for row in table
    ]
