"""One test a declared check, so that one failure hides no other fact."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from labrig import checks


def test_check(
    check: checks.Check, expectation: checks.Expectation, facts: dict[str, Any], outcomes: dict[str, dict[str, str]]
) -> None:
    outcome = checks.judge(check, expectation, facts)
    outcomes[check.id] = asdict(outcome)
    if outcome.status == checks.SKIPPED:
        pytest.skip(outcome.reason)
    assert outcome.status == checks.PASSED, (
        f"{check.says}: expected {outcome.expected}, found {outcome.found} ({outcome.reason})"
    )
