"""`python -m regard`, the same as `regard`; what torchrun calls."""

from __future__ import annotations

from regard.cli.main import main

main()
