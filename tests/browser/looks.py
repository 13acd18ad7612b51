"""What axe-core, put into a page before, says of it."""

from __future__ import annotations

from playwright.sync_api import Page


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical, with where it is."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    return [f"{each['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}" for each in found
            if each["impact"] in ("serious", "critical") for node in each["nodes"][:3]]  # fmt: skip
