"""`python -m vggt_deploy` is the command line."""

from __future__ import annotations

from vggt_deploy.cli import main

if __name__ == "__main__":
    main()
