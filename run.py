#!/usr/bin/env python3
"""Entry point of the BIDS App: run.py BIDS_DIR OUTPUT_DIR {participant,group} [options]."""

import sys

from bidsapp.cli import main

if __name__ == "__main__":
    sys.exit(main())
