"""Fits a calibration of a power sensor to an external meter's log."""
