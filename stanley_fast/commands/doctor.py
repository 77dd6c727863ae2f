"""stanley-fast doctor."""

from __future__ import annotations

import json
from dataclasses import dataclass

from stanley_fast import doctor
from stanley_fast.doctor import SelfCheckError


@dataclass
class Doctor:
    """Say what is installed, which backends can run here or why not, and check that they compute
    what they should. Exit status 1 if one doesn't."""

    json: bool = False
    """As JSON, for a bug report."""

    def run(self) -> None:
        report = doctor.examine()
        print(json.dumps(report, indent=2) if self.json else doctor.text(report))
        wrong = doctor.failed(report)
        if wrong:
            raise SelfCheckError(f"self-check failed: {', '.join(wrong)}")
