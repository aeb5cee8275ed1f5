"""Measured time, `python -m longtail bench ...`: one protocol, one record, floors beside; a file for each command."""
