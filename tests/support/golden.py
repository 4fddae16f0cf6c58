"""Values that a protocol's name stands for, kept in tests/golden: a red test says which one moved, and how."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "golden"
SHOWN = 20
# `pytest --write-golden` sets it.
write = False


def assert_unchanged(name: str, protocol: str, values: dict[str, str], where: str) -> None:
    """Holds values, by what they are, against those that were written down for a protocol.

    Args:
        name: of the file below tests/golden.
        protocol: the name that the values are published under.
        where: the function that gives a changed protocol its new name.
    """
    file = FOLDER / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else {"protocol": "nothing"}
    if write and known["protocol"] != protocol:  # other values under the old name stay an error
        known = {"protocol": protocol, "values": values}
        file.write_text(json.dumps(known, indent=0) + "\n")
    assert known["protocol"] == protocol, f"{known['protocol']} is now called {protocol}: `pytest --write-golden`"
    before = known["values"]
    moved = [
        f"  {key}: {before.get(key, 'not there')} -> {values.get(key, 'not there')}"
        for key in dict.fromkeys([*before, *values])
        if before.get(key) != values.get(key)
    ]
    assert not moved, (
        f"{protocol} now gives other numbers, {len(moved)} of {len(before)}:\n"
        + "\n".join(moved[:SHOWN])
        + f"\n  {'...' if len(moved) > SHOWN else ''}\nNumbers of before and after are not comparable: take the change "
        f"back, or give the protocol a new version in {where} and write the new values down by `pytest --write-golden`"
    )
