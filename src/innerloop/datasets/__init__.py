"""Labelled images: fetched, verified, parsed and split by class."""
