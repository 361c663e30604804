"""``python -m sedseg``, for launchers that start modules."""

from sedseg.cli import main

main()
