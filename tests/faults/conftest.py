"""Counts of what was tried: each test is a case, or as many as it counts itself."""

from collections import defaultdict

import pytest

KEY = "fault cases"


class Cases:
    """Counts cases: ``with cases:`` around each; one that ends with an error is lost."""

    def __init__(self):
        self.tried = self.survived = 0

    def __enter__(self):
        self.tried += 1

    def __exit__(self, kind, *_):
        self.survived += kind is None


@pytest.fixture
def cases(request):
    """Count cases of a test that tries many."""
    counts = Cases()
    yield counts
    request.node.user_properties.append((KEY, (counts.tried, counts.survived)))


def pytest_terminal_summary(terminalreporter):
    totals = defaultdict(lambda: [0, 0])
    reports = [
        report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "when")
    ]
    counted = {
        report.nodeid: dict(report.user_properties).get(KEY)
        for report in reports
        if report.when == "teardown"
    }
    for report in reports:
        if report.when != "call" or report.skipped or "tests/faults/" not in report.nodeid:
            continue
        tried, survived = counted.get(report.nodeid) or (1, 1)
        if report.failed:
            survived = min(survived, tried - 1)
        total = totals[report.nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")]
        total[0], total[1] = total[0] + tried, total[1] + survived
    if not totals:
        return
    terminalreporter.section("faults")
    totals["all"] = [sum(total[k] for total in totals.values()) for k in range(2)]
    for name, (tried, survived) in totals.items():
        terminalreporter.write_line(
            f"{name}: {tried} cases tried, {survived} survived, {tried - survived} lost"
        )
